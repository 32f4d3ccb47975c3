"""Baidu BCC, by Baidu's own SDK: one client a region."""
import time

import raw
from alibaba import KEY, OTHER, OTHER_SECRET, SECRET
from daemon import MIB, Daemon, check, until

from baidubce.auth.bce_credentials import BceCredentials
from baidubce.bce_client_configuration import BceClientConfiguration
from baidubce.exception import BceHttpClientError
from baidubce.retry.retry_policy import NoRetryPolicy
from baidubce.services.bcc.bcc_client import BccClient

BJ, GZ, SU = "bj", "gz", "su"


class Region:
    def __init__(self, daemon, region, key=KEY, secret=SECRET):
        config = BceClientConfiguration(credentials=BceCredentials(key, secret),
                                        endpoint="http://" + daemon.at("baidu", region), retry_policy=NoRetryPolicy())
        self.client = BccClient(config)

    def call(self, work):
        try:
            return 200, work(), ""
        except BceHttpClientError as error:
            return error.status_code, error.code, str(error.last_error)

    def copy(self, image, name, regions):
        return self.call(lambda: self.client.remote_copy_image(image, name, regions))

    def cancel(self, image):
        return self.call(lambda: self.client.cancle_remote_copy_image(image))

    def delete(self, image):
        return self.call(lambda: self.client.delete_image(image))

    def get(self, image):
        status, told, text = self.call(lambda: self.client.get_image(image))
        return told.image if status == 200 else (status, told, text)

    def status(self, image):
        return getattr(self.get(image), "status", None)

    def list(self, **asked):
        return self.call(lambda: self.client.list_images(**asked))[1].images


def tell(text):
    return "bce-python-sdk: " + text


def basic(daemon, bj, gz, su):
    source = daemon.data(BJ, "m-source1")
    status, told, text = bj.copy("m-source1", "vec 名/+", [SU])
    check(tell("a copy answers with the new image at once"), status == 200 and told.result[0].image_id.startswith("m-"), told)
    row = told.result[0]
    check(tell("one row a region, without error"), (len(told.result), row.region, row.code, row.err_msg) == (1, SU, "", ""))
    new = row.image_id
    check(tell("a copy gets to its end"), until("available", lambda: su.status(new) == "Available"))
    image = su.get(new)
    check(tell("the image is told as it was asked for"), (image.name, image.type) == ("vec 名/+", "Custom"), image)
    check(tell("its bytes are those of the source"), daemon.data(SU, new) == source)
    status, code, text = su.cancel(new)
    check(tell("a cancel of a finished copy is refused as the vendor does"),
          (status, code) == (409, "Image.ImageStatusForbidden") and "Image status is not dest_copying." in text, (code, text))
    check(tell("and the image stays"), su.status(new) == "Available" and daemon.data(SU, new) == source)

    new = bj.copy("m-source1", "half", [GZ])[1].result[0].image_id
    staged = lambda: daemon.images(GZ)[1] != []
    until("it runs", staged)
    check(tell("an image that is being copied is told so"), gz.status(new) == "Creating", gz.get(new))
    status, code, text = gz.delete(new)
    check(tell("and is not deleted"), (status, code) == (409, "Image.CreatingImageCannotBeDeleted") and
          "Cannot delete image when creating." in text, (status, code, text))
    status, told, _ = gz.cancel(new)
    check(tell("a cancel half way is taken"), status == 200, told)
    check(tell("and the image is gone"), gz.get(new)[:2] == (404, "NoSuchObject"), gz.get(new))
    check(tell("with its bytes"), until("clean", lambda: daemon.images(GZ) == ([], [])), daemon.images(GZ))
    check(tell("and the source is as it was"), bj.status("m-source1") == "Available" and daemon.data(BJ, "m-source1") == source)
    for what, told in [("a second cancel", gz.cancel(new)), ("a cancel of what never was", gz.cancel("m-00000000")),
                       ("a copy of what never was", bj.copy("m-00000000", "x", [SU]))]:
        check(tell("%s finds no image" % what), told[:2] == (404, "NoSuchObject") and
              "The specified object is not found or resource do not exist." in told[2], told)
    told = bj.cancel("m-source1")
    check(tell("an image that is no copy is told so"), told[:2] == (409, "Image.ImageStatusForbidden"), told)


def fan_out(daemon, bj, gz, su):
    """One call, several regions: each leg on its own."""
    told = bj.copy("m-source2", "fan", [GZ, SU, GZ])[1].result
    check(tell("a region that comes twice counts once"), [row.region for row in told] == [GZ, SU], told)
    slow, fast = told[0].image_id, told[1].image_id
    check(tell("the faster leg ends first"), until("available", lambda: su.status(fast) == "Available") and
          gz.status(slow) == "Creating")
    check(tell("the slower one is cancelled alone"), gz.cancel(slow)[0] == 200 and su.status(fast) == "Available" and
          gz.get(slow)[:2] == (404, "NoSuchObject"))
    check(tell("and leaves nothing"), until("clean", lambda: daemon.images(GZ) == ([], [])))
    before = len(su.list(image_type="All"))
    for what, regions, wanted, text in [
        ("an unknown region", [SU, "mars"], (409, "Image.RegionNotSupportCopy"), "Region not support copy."),
        ("its own region", [BJ, SU], (409, "Image.RegionNotSupportCopy"), "Region not support copy."),
        ("no region", [], (400, "InappropriateJSON"), "not appropriate"),
    ]:
        seen = bj.copy("m-source2", "x", regions)
        check(tell("%s is refused" % what), seen[:2] == wanted and text in seen[2], seen)
    check(tell("and nothing is started then"), len(su.list(image_type="All")) == before)


def rules(daemon, bj, gz, su):
    seen = bj.copy("m-small-system", "x", [SU])
    check(tell("a system image is not copied"), seen[:2] == (409, "Image.ImageNotSupportCopy"), seen)
    seen = bj.delete("m-small-system")
    check(tell("nor deleted"), seen[:2] == (403, "Image.UnCustomImageCannotBeDeleted"), seen)
    seen = bj.delete("m-small-shared")
    check(tell("an image that is shared is not deleted"), seen[:2] == (409, "Image.ImageHasBeenSharedToOthers"), seen)
    creating = bj.copy("m-source3", "x", [GZ])[1].result[0].image_id
    seen = gz.copy(creating, "y", [SU])
    check(tell("an image that is not there yet is not copied"), seen[:2] == (409, "Image.ImageStatusForbidden") and
          "Image status is not Available." in seen[2], seen)
    gz.cancel(creating)
    other = Region(daemon, BJ, OTHER, OTHER_SECRET)
    check(tell("another account's image is not found"), other.get("m-source1")[:2] == (404, "NoSuchObject"))
    check(tell("but a shared one is"), other.get("m-small-shared").type == "Sharing")
    ids = [image.id for image in bj.list(image_type="Custom")]
    check(tell("images are listed by type"), "m-source1" in ids and "m-small-system" not in ids, ids)
    page = bj.call(lambda: bj.client.list_images(image_type="All", max_keys=2))[1]
    check(tell("and by pages"), page.is_truncated and len(page.images) == 2, page)
    rest = bj.call(lambda: bj.client.list_images(image_type="All", marker=page.next_marker, max_keys=1000))[1].images
    check(tell("that do not overlap"), not {i.id for i in page.images} & {i.id for i in rest} and
          len(rest) + 2 == len(bj.list(image_type="All")))
    wrong = Region(daemon, BJ, KEY, "wrong").get("m-source1")
    check(tell("a wrong secret is refused"), wrong[:2] == (400, "SignatureDoesNotMatch"), wrong)
    nobody = Region(daemon, BJ, "AKIDNOBODY", "x").get("m-source1")
    check(tell("an unknown key is refused"), nobody[:2] == (403, "InvalidAccessKeyId"), nobody)
    status, _, body = raw.get(daemon.at("baidu", BJ), "/v2/image/m-source1")
    check(tell("an unsigned request is refused"), status == 403 and b'"code":"AccessDenied"' in body, body)
    status, _, body = raw.get(daemon.at("baidu", BJ), "/v2/image/x", headers="Authorization: bce-auth-v1/a/b\r\n")
    check(tell("a malformed one too"), status == 400 and b'"code":"InvalidHTTPAuthHeader"' in body, body)


def life(daemon, bj, gz, su):
    new = [bj.copy("m-source%d" % n, "life", [GZ])[1].result[0].image_id for n in range(1, 4)]
    until("they run", lambda: len(daemon.images(GZ)[1]) == 3)
    daemon.kill()
    daemon.start()
    bj, gz = Region(daemon, BJ), Region(daemon, GZ)
    check(tell("after SIGKILL what ran goes on"), [gz.status(image) for image in new] == ["Creating"] * 3)
    check(tell("and a cancel still works"), gz.cancel(new[0])[0] == 200 and gz.get(new[0])[:2] == (404, "NoSuchObject"))
    check(tell("what was not cancelled arrives whole"),
          all(until("available", lambda: gz.status(i) == "Available") and daemon.data(GZ, i) == daemon.data(BJ, "m-source%d" % n)
              for i, n in ((new[1], 2), (new[2], 3))))
    check(tell("and nothing else is left"), until("clean", lambda: daemon.images(GZ) == (sorted(new[1:]), [])))


def race(daemon, bj, su):
    won, wrong = {"cancel": 0, "copy": 0}, []
    began, image = time.monotonic(), bj.copy("m-mid", "race", [SU])[1].result[0].image_id
    until("available", lambda: su.status(image) == "Available")
    whole = time.monotonic() - began
    for number in range(60):
        image = bj.copy("m-mid", "race", [SU])[1].result[0].image_id
        time.sleep(number % 30 / 24 * whole)
        status, code, _ = su.cancel(image)
        seen = su.status(image)
        if status == 200 and seen is None:
            won["cancel"] += 1
        elif (status, code) == (409, "Image.ImageStatusForbidden") and seen == "Available":
            won["copy"] += 1
            su.delete(image)
        else:
            wrong.append((number, status, code, seen))
    check(tell("60 races have one winner each (%(cancel)d cancels, %(copy)d copies)" % won), not wrong, wrong)


def run():
    own = 'project = "p1"\n'
    images = {(BJ, "m-source%d" % n): own for n in range(1, 4)}
    images[BJ, "m-mid"] = own
    images[BJ, "m-small-system"] = 'project = "vendor"\nkind = "system"\n'
    images[BJ, "m-small-shared"] = own + 'shared_with = ["p2"]\n'
    grant = 'secret = "%s"\nproject = "%s"\nregions = ["*"]\nimages = ["*"]'
    keys = {KEY: grant % (SECRET, "p1"), OTHER: grant % (OTHER_SECRET, "p2")}
    listeners = ['cloud = "baidu"\nregion = "%s"' % region for region in (BJ, GZ, SU)]
    daemon = Daemon("baidu", {BJ: "", GZ: 'rate = "12MiB/s"', SU: ""}, images, keys, listeners,
                    {"m-mid": 8 * MIB})
    regions = [Region(daemon, region) for region in (BJ, GZ, SU)]
    basic(daemon, *regions)
    fan_out(daemon, *regions)
    rules(daemon, *regions)
    race(daemon, regions[0], regions[2])
    life(daemon, *regions)
    check(tell("the daemon ends in an orderly way"), daemon.stop())
