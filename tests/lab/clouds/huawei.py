"""Huawei IMS, by Huawei's own SDK: one client a region; and our own cancel, which Huawei has not."""
import hashlib
import hmac
import json
import time
import uuid

import raw
from alibaba import KEY, OTHER, OTHER_SECRET, SECRET
from daemon import MIB, Daemon, check, until

from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.exceptions.exceptions import ServiceResponseException
from huaweicloudsdkims.v2 import (CopyImageCrossRegionRequest, CopyImageCrossRegionRequestBody, CopyImageInRegionRequest,
                                  CopyImageInRegionRequestBody, GlanceDeleteImageRequest, GlanceDeleteImageRequestBody,
                                  GlanceShowImageRequest, ImsClient, ListImagesRequest, ShowJobProgressRequest,
                                  ShowJobRequest)

NORTH, SOUTH = "cn-north-4", "cn-south-1"
P1, P2 = "0a0b0c0d0e0f40108a1b2c3d4e5f6071", "0a0b0c0d0e0f40108a1b2c3d4e5f6072"
image_of = lambda n: str(uuid.uuid5(uuid.NAMESPACE_OID, "small-%s" % n if isinstance(n, str) else "source-%d" % n))


class Region:
    def __init__(self, daemon, region, key=KEY, secret=SECRET, project=P1):
        self.address = daemon.at("huawei", region)
        self.key, self.secret = key, secret
        self.client = ImsClient.new_builder().with_credentials(BasicCredentials(key, secret, project)) \
            .with_endpoint("http://" + self.address).build()

    def call(self, work):
        try:
            return 200, work(), ""
        except ServiceResponseException as error:
            return error.status_code, error.error_code, error.error_msg

    def copy(self, image, **fields):
        body = CopyImageInRegionRequestBody(**fields)
        request = CopyImageInRegionRequest(image_id=image, body=body)
        return self.call(lambda: self.client.copy_image_in_region(request).job_id)

    def cross(self, image, region, **fields):
        fields = dict(dict(name="cross", project_name=region, agency_name="ims"), **fields)
        body = CopyImageCrossRegionRequestBody(region=region, **fields)
        request = CopyImageCrossRegionRequest(image_id=image, body=body)
        return self.call(lambda: self.client.copy_image_cross_region(request).job_id)

    def job(self, job):
        return self.call(lambda: self.client.show_job(ShowJobRequest(job_id=job)))

    def progress(self, job):
        return self.call(lambda: self.client.show_job_progress(ShowJobProgressRequest(job_id=job)))[1]

    def status(self, job):
        return self.job(job)[1].status

    def image(self, image):
        return self.call(lambda: self.client.glance_show_image(GlanceShowImageRequest(image_id=image)))

    def list(self, **asked):
        return self.call(lambda: self.client.list_images(ListImagesRequest(**asked)))[1].images

    def delete(self, image):
        request = GlanceDeleteImageRequest(image_id=image, body=GlanceDeleteImageRequestBody())
        return self.call(lambda: self.client.glance_delete_image(request))

    def cancel(self, job):
        """Our own call, signed as theirs are."""
        path = "/blockferry/v1/jobs/%s/cancel" % job
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        canonical = "\n".join(["POST", path + "/", "", "host:%s\nx-sdk-date:%s\n" % (self.address, stamp), "host;x-sdk-date",
                               hashlib.sha256(b"").hexdigest()])
        to_sign = "SDK-HMAC-SHA256\n%s\n%s" % (stamp, hashlib.sha256(canonical.encode()).hexdigest())
        mac = hmac.new(self.secret.encode(), to_sign.encode(), hashlib.sha256).hexdigest()
        auth = "SDK-HMAC-SHA256 Access=%s, SignedHeaders=host;x-sdk-date, Signature=%s" % (self.key, mac)
        status, _, body = raw.get(self.address, path, method="POST",
                                  headers="X-Sdk-Date: %s\r\nAuthorization: %s\r\n" % (stamp, auth))
        return status, json.loads(body)


def tell(text):
    return "huaweicloudsdkims: " + text


def basic(daemon, north, south):
    source = image_of(1)
    before = daemon.data(NORTH, source)
    status, job, _ = north.copy(source, name="test 镜像", description="test copy")
    check(tell("a copy in the region answers with a job"), status == 200 and len(job) == 32, job)
    check(tell("the job gets to its end"), until("success", lambda: north.status(job) == "SUCCESS"))
    told = north.job(job)[1]
    check(tell("the job is told as the vendor does"),
          told.job_type == "imsCopyImageInRegionJob" and told.entities.image_name == "test 镜像" and told.begin_time.endswith("Z")
          and told.end_time.endswith("Z") and not told.error_code, told)
    new = told.entities.image_id
    progress = north.progress(job)
    check(tell("its progress is a whole"), progress.status == "SUCCESS" and progress.entities.process_percent == 1 and
          progress.entities.current_task == "", progress)
    status, image, _ = north.image(new)
    check(tell("the image is active"), status == 200 and image.status == "active" and image.name == "test 镜像", image)
    check(tell("its bytes are those of the source"), daemon.data(NORTH, new) == before)
    check(tell("it is listed as private"), [i.id for i in north.list(imagetype="private", name="test 镜像")] == [new])
    check(tell("an image is deleted"), north.delete(new)[0] == 200 and north.image(new)[0] == 404, north.image(new))

    job = north.cross(source, SOUTH, name="half")[1]
    until("half way", lambda: north.progress(job).entities.process_percent >= 0.2)
    told = north.progress(job)
    check(tell("a job across regions is told while it runs"), told.status == "RUNNING" and
          told.job_type == "imsCrossRegionCopyImageJob" and 0.2 <= told.entities.process_percent < 1 and told.end_time == "", told)
    new = told.entities.image_id
    check(tell("its image is being saved"), south.image(new)[1].status == "saving", south.image(new))
    seen = south.delete(new)
    check(tell("and is not deleted"), seen == (400, "IMG.0090", "The image being created cannot be deleted."), seen)
    seen = north.delete(source)
    check(tell("nor is its source"), seen[:2] == (400, "IMG.0028"), seen)
    status, told = north.cancel(job)
    check(tell("our own cancel is taken half way"), (status, told["status"]) == (200, "FAIL"), told)
    told = north.job(job)[1]
    check(tell("and the SDK sees that the job failed"), told.status == "FAIL" and told.error_code == "BLOCKFERRY.0003", told)
    check(tell("and that there is no image"), south.image(new)[0] == 404 and south.list(id=new) == [])
    check(tell("nor bytes"), until("clean", lambda: daemon.images(SOUTH) == ([], [])), daemon.images(SOUTH))
    check(tell("and the source is as it was"), north.image(source)[1].status == "active" and daemon.data(NORTH, source) == before)
    job = north.copy(source, name="finished")[1]
    until("success", lambda: north.status(job) == "SUCCESS")
    status, told = north.cancel(job)
    check(tell("our own cancel of a finished copy is refused"), (status, told["error"]["code"]) == (409, "BLOCKFERRY.0001"), told)
    seen = north.job("0" * 32)
    check(tell("an unknown job is not found"), seen[:2] == (400, "Common.0011"), seen)


def validation(daemon, north, south):
    source = image_of(1)
    job = north.copy(image_of(2), name="taken")[1]
    for what, image, fields, wanted in [
        ("a name that is missing", source, {}, (400, "IMG.0013", "The image name is not specified.")),
        ("a name too long", source, {"name": "a" * 129}, (400, "IMG.0002", "The image name contains more than 128 characters.")),
        ("a name that begins with a space", source, {"name": " a"}, (400, "IMG.0003", "The image name format is invalid.")),
        ("a name with what may not be", source, {"name": "a/b"}, (400, "IMG.0003", "The image name format is invalid.")),
        ("a name that is taken", source, {"name": "taken"}, (400, "IMG.0009", "The image name already exists.")),
        ("a description too long", source, {"name": "n", "description": "d" * 1025},
         (400, "IMG.0004", "The description contains more than 1024 characters.")),
        ("a description with what may not be", source, {"name": "n", "description": "<b>"},
         (400, "IMG.0054", "The image description format is invalid.")),
        ("a key that is none", source, {"name": "n", "cmk_id": "bd66288c-9081-460a-8227-4cbd0c814cb4"},
         (400, "IMG.0095", "The KMS key does not exist.")),
        ("an enterprise project that is none", source, {"name": "n", "enterprise_project_id": "x"},
         (400, "IMG.0155", "Failed to check the enterprise project ID validity.")),
        ("an image that never was", str(uuid.uuid4()), {"name": "n"},
         (400, "IMG.0027", "The image ID in the request does not exist.")),
        ("an image id that is none", "m-nothing", {"name": "n"}, (400, "IMG.0066", "The image ID is incorrect.")),
        ("an ISO image", image_of("iso"), {"name": "n"}, (400, "IMG.0167", "This operation cannot be performed for ISO images.")),
        ("a whole-instance image", image_of("whole"), {"name": "n"},
         (400, "IMG.0130", "The full-ECS image cannot be exported or replicated.")),
        ("a public image", image_of("system"), {"name": "n"},
         (400, "IMG.0047", "This operation can be performed only by the image owner.")),
        ("another account's image", image_of("foreign"), {"name": "n"},
         (400, "IMG.0027", "The image ID in the request does not exist.")),
    ]:
        seen = north.copy(image, **fields)
        check(tell("%s is refused" % what), seen == wanted, seen)
    for what, region, fields, wanted in [
        ("a copy across to its own region", NORTH, {}, (400, "IMG.0105")),
        ("a region that is none", "cn-mars-1", {}, (400, "IMG.0031")),
        ("a project name that is missing", SOUTH, {"project_name": ""}, (400, "IMG.0145")),
    ]:
        seen = north.cross(source, region, **fields)
        check(tell("%s is refused" % what), seen[:2] == wanted, seen)
    seen = north.delete(image_of("system"))
    check(tell("a public image is not deleted"), seen[:2] == (400, "IMG.0094"), seen)
    until("success", lambda: north.status(job) == "SUCCESS")
    other = Region(daemon, NORTH, OTHER, OTHER_SECRET, P2)
    check(tell("another account's job is not found"), other.job(job)[:2] == (400, "Common.0011"))
    wrong = Region(daemon, NORTH, KEY, "wrong").image(source)
    check(tell("a wrong secret is refused by the gateway"), wrong[:2] == (401, "APIGW.0301") and "verify aksk" in wrong[2], wrong)
    nobody = Region(daemon, NORTH, "AKIDNOBODY", "x").image(source)
    check(tell("an unknown key too"), nobody[:2] == (401, "APIGW.0301") and "ak:AKIDNOBODY,err:ak not exist" in nobody[2], nobody)
    status, headers, body = raw.get(daemon.at("huawei", NORTH), "/v1/nothing")
    check(tell("an unsigned request too"), status == 401 and b"APIGW.0301" in body and "x-request-id" in headers, body)


def queue_and_life(daemon, north, south):
    jobs = [north.cross(image_of(n), SOUTH, name="queue-%d" % n)[1] for n in range(1, 8)]
    states = [north.status(job) for job in jobs]
    check(tell("of seven copies five run and two wait"), states == ["RUNNING"] * 5 + ["INIT"] * 2, states)
    daemon.kill()
    daemon.start()
    north, south = Region(daemon, NORTH), Region(daemon, SOUTH)
    states = [north.status(job) for job in jobs]
    check(tell("after SIGKILL they do again"), states == ["RUNNING"] * 5 + ["INIT"] * 2, states)
    check(tell("and a cancel still works"), north.cancel(jobs[0])[0] == 200 and north.status(jobs[0]) == "FAIL")
    done = lambda: all(north.status(job) == "SUCCESS" for job in jobs[1:])
    check(tell("what was not cancelled arrives"), until("success", done, 120))
    made = {north.job(job)[1].entities.image_id: n for n, job in enumerate(jobs, 1) if n > 1}
    check(tell("whole"), all(daemon.data(SOUTH, i) == daemon.data(NORTH, image_of(n)) for i, n in made.items()))
    check(tell("and nothing else is left"), until("clean", lambda: daemon.images(SOUTH) == (sorted(made), [])))


def race(daemon, north):
    won, wrong = {"cancel": 0, "copy": 0}, []
    began, job = time.monotonic(), north.copy(image_of("mid"), name="whole")[1]
    until("success", lambda: north.status(job) == "SUCCESS")
    whole = time.monotonic() - began
    for number in range(60):
        job = north.copy(image_of("mid"), name="race-%d" % number)[1]
        image = north.job(job)[1].entities.image_id
        time.sleep(number % 30 / 24 * whole)
        status, told = north.cancel(job)
        seen, there = north.status(job), north.image(image)
        if status == 200 and seen == "FAIL" and there[0] == 404:
            won["cancel"] += 1
        elif status == 409 and seen == "SUCCESS" and there[1].status == "active":
            won["copy"] += 1
            north.delete(image)
        else:
            wrong.append((number, status, told, seen))
    check(tell("60 races have one winner each (%(cancel)d cancels, %(copy)d copies)" % won), not wrong, wrong)


def run():
    own = 'project = "%s"\n' % P1
    images = {(NORTH, image_of(n)): own for n in range(1, 8)}
    images[NORTH, image_of("mid")] = own
    images[NORTH, image_of("system")] = 'project = "vendor"\nkind = "system"\n'
    images[NORTH, image_of("iso")] = own + 'kind = "iso"\n'
    images[NORTH, image_of("whole")] = own + 'kind = "whole-instance"\n'
    images[NORTH, image_of("foreign")] = 'project = "%s"\n' % P2
    grant = 'secret = "%s"\nproject = "%s"\nregions = ["cn-*"]\nimages = ["*"]'
    keys = {KEY: grant % (SECRET, P1), OTHER: grant % (OTHER_SECRET, P2)}
    listeners = ['cloud = "huawei"\nregion = "%s"' % region for region in (NORTH, SOUTH)]
    daemon = Daemon("huawei", {NORTH: "", SOUTH: 'rate = "12MiB/s"'}, images, keys, listeners,
                    {image_of(kind): 8 * MIB for kind in ("mid", "system", "iso", "whole", "foreign")})
    regions = [Region(daemon, region) for region in (NORTH, SOUTH)]
    basic(daemon, *regions)
    validation(daemon, *regions)
    race(daemon, regions[0])
    queue_and_life(daemon, *regions)
    check(tell("the daemon ends in an orderly way"), daemon.stop())
