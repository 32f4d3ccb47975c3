"""Alibaba ECS, by the two SDKs of Alibaba's: the older, and the newer signing both ways."""
import concurrent.futures
import json
import socket
import time

import raw
from daemon import MIB, Daemon, check, until

from aliyunsdkcore.acs_exception.exceptions import ServerException
from aliyunsdkcore.client import AcsClient
from aliyunsdkecs.request.v20140526 import (CancelCopyImageRequest, CopyImageRequest, DeleteImageRequest,
                                            DescribeImagesRequest, DescribeRegionsRequest)
from alibabacloud_ecs20140526 import models
from alibabacloud_ecs20140526.client import Client
from alibabacloud_tea_openapi.models import Config

KEY, SECRET = "AKIDLAB0001", "lab-secret-0001"
OTHER, OTHER_SECRET = "AKIDLAB0002", "lab-secret-0002"
NARROW, NARROW_SECRET = "AKIDLAB0003", "lab-secret-0003"
HZ, SH, BJ = "cn-hangzhou", "cn-shanghai", "cn-beijing"


class Legacy:
    name = "aliyun-python-sdk-ecs"

    def __init__(self, address, key=KEY, secret=SECRET):
        self.address, self.key, self.secret = address, key, secret
        # One client a region, for it is the client that says which; making one takes a while.
        self.clients = {}

    def call(self, region, request, **params):
        for name, value in params.items():
            if name == "Tags":
                request.set_Tags(value)
            else:
                request.add_query_param(name, value)
        request.set_endpoint(self.address)
        request.set_accept_format("JSON")
        if region not in self.clients:
            self.clients[region] = AcsClient(self.key, self.secret, region, auto_retry=False)
        try:
            return 200, json.loads(self.clients[region].do_action_with_exception(request)), ""
        except ServerException as error:
            return error.get_http_status(), error.get_error_code(), error.get_error_msg()

    def copy(self, region, image, to, **more):
        tags = [{"Key": k, "Value": v} for k, v in more.pop("tags", {}).items()]
        if tags:
            more["Tags"] = tags
        return self.call(region, CopyImageRequest.CopyImageRequest(), ImageId=image, DestinationRegionId=to, **more)

    def cancel(self, region, image):
        return self.call(region, CancelCopyImageRequest.CancelCopyImageRequest(), ImageId=image)

    def delete(self, region, image):
        return self.call(region, DeleteImageRequest.DeleteImageRequest(), ImageId=image)

    def describe(self, region, **params):
        status, told, message = self.call(region, DescribeImagesRequest.DescribeImagesRequest(), **params)
        return told["Images"]["Image"] if status == 200 else (status, told, message)

    def regions(self):
        return [r["RegionId"] for r in self.call(HZ, DescribeRegionsRequest.DescribeRegionsRequest())[1]["Regions"]["Region"]]


class Newer:
    name = "alibabacloud-ecs20140526"

    def __init__(self, address, key=KEY, secret=SECRET, algorithm=None):
        config = Config(access_key_id=key, access_key_secret=secret, region_id=HZ, endpoint=address, protocol="http")
        if algorithm:
            config.signature_algorithm = algorithm
            self.name += " signing the RPC way"
        self.client = Client(config)

    def call(self, work):
        try:
            return 200, work().body.to_map(), ""
        except Exception as error:  # The SDK's own, which differ by version.
            data = getattr(error, "data", None) or {}
            status = getattr(error, "status_code", None) or data.get("statusCode")
            return status, getattr(error, "code", str(error)), data.get("Message") or getattr(error, "message", "")

    NAMES = {"DestinationImageName": "destination_image_name", "DestinationDescription": "destination_description",
             "ClientToken": "client_token", "DryRun": "dry_run", "Encrypted": "encrypted", "KMSKeyId": "kmskey_id",
             "Status": "status", "ImageId": "image_id", "PageSize": "page_size", "PageNumber": "page_number",
             "ImageOwnerAlias": "image_owner_alias"}

    def copy(self, region, image, to, **more):
        tags = [models.CopyImageRequestTag(key=k, value=v) for k, v in more.pop("tags", {}).items()]
        fields = {self.NAMES[k]: v for k, v in more.items()}
        request = models.CopyImageRequest(region_id=region, image_id=image, destination_region_id=to, tag=tags or None,
                                          **fields)
        return self.call(lambda: self.client.copy_image(request))

    def cancel(self, region, image):
        request = models.CancelCopyImageRequest(region_id=region, image_id=image)
        return self.call(lambda: self.client.cancel_copy_image(request))

    def delete(self, region, image):
        request = models.DeleteImageRequest(region_id=region, image_id=image)
        return self.call(lambda: self.client.delete_image(request))

    def describe(self, region, **params):
        fields = {self.NAMES[k]: v for k, v in params.items()}
        request = models.DescribeImagesRequest(region_id=region, **fields)
        status, told, message = self.call(lambda: self.client.describe_images(request))
        return told["Images"]["Image"] if status == 200 else (status, told, message)

    def regions(self):
        told = self.call(lambda: self.client.describe_regions(models.DescribeRegionsRequest()))[1]
        return [r["RegionId"] for r in told["Regions"]["Region"]]


ALL = "Creating,Waiting,Available,CreateFailed"


def state(sdk, region, image):
    """Status and percent of an image, or None where there is none."""
    rows = sdk.describe(region, ImageId=image, Status=ALL)
    return (rows[0]["Status"], int(rows[0]["Progress"].rstrip("%"))) if rows else None


def is_at(sdk, region, image, status):
    return lambda: (state(sdk, region, image) or [None])[0] == status


def basic(daemon, sdk, number):
    """The calls of both seeds, by one SDK. `number` keeps the names of several apart."""
    tell = lambda text: "%s: %s" % (sdk.name, text)
    source, name = "m-source%d" % number, "copy-%d" % number
    before = daemon.data(HZ, source)
    check(tell("regions are told"), sdk.regions() == [BJ, HZ, SH])

    odd = "it's a (b)+c*~ d/中"
    status, told, _ = sdk.copy(HZ, source, BJ, DestinationImageName=name, DestinationDescription=odd, tags={"k": "v w"})
    check(tell("a copy answers with the new image at once"), status == 200 and told["ImageId"].startswith("m-"), told)
    new = told["ImageId"]
    check(tell("a copy gets to its end"), until("available", is_at(sdk, BJ, new, "Available")))
    row = sdk.describe(BJ, ImageId=new)[0]
    check(tell("the image is told as it was asked for"),
          (row["ImageName"], row["Description"], row["IsCopied"], row["Progress"]) == (name, odd, True, "100%")
          and row["Tags"]["Tag"] == [{"TagKey": "k", "TagValue": "v w"}] and row["Size"] == 1, row)
    check(tell("its bytes are those of the source"), daemon.data(BJ, new) == before)

    told = sdk.cancel(BJ, new)
    check(tell("a cancel of a finished copy is refused as the vendor does"),
          told == (400, "IncorrectImageStatus", "The image copy has completed."), told)
    check(tell("and the image stays"), state(sdk, BJ, new) == ("Available", 100) and daemon.data(BJ, new) == before)

    new = sdk.copy(HZ, source, SH)[1]["ImageId"]
    until("half way", lambda: (state(sdk, SH, new) or ("", 0))[1] >= 20)
    check(tell("an image that is being copied is seen only when asked for"), sdk.describe(SH, ImageId=new) == [])
    told = sdk.delete(SH, new)
    check(tell("an image that is being copied is not deleted"),
          told == (403, "OperationDenied.ImageCopying", "The Image is coping."), told)
    told = sdk.delete(HZ, source)
    check(tell("nor is one that is being read"), told[:2] == (403, "OperationDenied.ImageCopying"), told)
    began = time.monotonic()
    told = sdk.cancel(SH, new)
    took = time.monotonic() - began
    check(tell("a cancel half way is taken"), told[0] == 200 and "RequestId" in told[1], told)
    check(tell("within 250 ms and what the SDK adds"), took < 1, took)
    check(tell("and the image is gone"), state(sdk, SH, new) is None)
    check(tell("with its bytes"), until("clean", lambda: daemon.images(SH) == ([], [])), daemon.images(SH))
    check(tell("and the source is as it was"),
          state(sdk, HZ, source) == ("Available", 100) and daemon.data(HZ, source) == before)
    no_image = (404, "InvalidImageId.NotFound", "The specified ImageId does not exist.")
    told = sdk.cancel(SH, new)
    check(tell("a second cancel finds no image"), told == no_image, told)
    check(tell("nor does one of an image that never was"), sdk.cancel(SH, "m-nothing") == no_image)
    check(tell("nor one in another region"), sdk.cancel(SH, source) == no_image)
    told = sdk.cancel(HZ, source)
    check(tell("an image that is no copy is told so"),
          told == (400, "ImageCreatedNotFromCopy", "The specified image is not the target image of a copy action."), told)
    told = sdk.copy(HZ, "m-nothing", BJ)
    check(tell("a source that never was is not found"), told == no_image, told)


def validation(daemon, sdk):
    tell = lambda text: "%s: %s" % (sdk.name, text)
    source = "m-source1"
    cases = [
        ("a name too short", {"DestinationImageName": "x"}, 400, "InvalidImageName.Malformed"),
        ("a name that begins as it may not", {"DestinationImageName": "aliyun-x"}, 400, "InvalidImageName.Malformed"),
        ("a name with a URL", {"DestinationImageName": "ahttp://b"}, 400, "InvalidImageName.Malformed"),
        ("a name too long", {"DestinationImageName": "a" * 129}, 400, "InvalidImageName.Malformed"),
        ("a description that is a URL", {"DestinationDescription": "http://b"}, 400, "InvalidDescription.Malformed"),
        ("a description too long", {"DestinationDescription": "d" * 257}, 400, "InvalidDescription.Malformed"),
        ("a key without encryption", {"KMSKeyId": "k"}, 400, "InvalidParameter.EncryptedIllegal"),
        ("encryption without keys here", {"Encrypted": True, "KMSKeyId": "k"}, 400, "InvalidParameter.KmsNotEnabled"),
        ("a token too long", {"ClientToken": "t" * 65}, 400, "InvalidParameter"),
        ("a label that may not be", {"tags": {"acs:k": "v"}}, 400, "InvalidParameter"),
        ("a dry run", {"DryRun": True}, 400, "DryRunOperation"),
        ("a name that is taken", {"DestinationImageName": "taken"}, 400, "InvalidImageName.Duplicated"),
    ]
    sdk.copy(HZ, "m-source2", BJ, DestinationImageName="taken")
    for what, params, status, code in cases:
        told = sdk.copy(HZ, source, BJ, **params)
        check(tell("%s is refused" % what), told[:2] == (status, code), told)
    for what, args, status, code, message in [
        ("an unknown region of the source", ("cn-nowhere", source, BJ), 400, "SourceRegion.NotFound",
         "The source region not found."),
        ("an unknown destination", (HZ, source, "cn-nowhere"), 400, "DestinationRegion.NotFound",
         "The destination region not found."),
        ("the same region", (HZ, source, HZ), 403, "IncorrectDestinationRegion",
         "The destination region is not equal the target region."),
        ("a system image", (HZ, "m-small-system", BJ), 404, "InvalidImageId.NotFound",
         "The specified ImageId does not exist."),
        ("a shared image elsewhere", (HZ, "m-small-shared", BJ), 403, "OperationDenied.SameRegionOnly",
         "The image shared from others can not be copied to another region directly."),
        ("another account's image", (HZ, "m-small-foreign", BJ), 404, "InvalidImageId.NotFound",
         "The specified ImageId does not exist."),
    ]:
        told = sdk.copy(*args)
        check(tell("%s is refused" % what), told == (status, code, message), told)
    new = sdk.copy(HZ, source, SH)[1]["ImageId"]
    told = sdk.copy(HZ, source, SH)
    check(tell("a second copy to the same region is refused"), told[:2] == (400, "OperationDenied.ImageCopyConflict"), told)
    sdk.cancel(SH, new)
    told = sdk.cancel("cn-nowhere", new)
    check(tell("a cancel in no region is refused"), told[:2] == (404, "InvalidRegionId.NotFound"), told)
    told = sdk.copy(HZ, "m-small-shared", HZ)
    check(tell("a shared image may be copied within its region"), told[0] == 200, told)


def tokens(daemon, sdk):
    tell = lambda text: "%s: %s" % (sdk.name, text)
    first = sdk.copy(HZ, "m-source1", BJ, ClientToken="once")[1]["ImageId"]
    again = sdk.copy(HZ, "m-source1", BJ, ClientToken="once")
    check(tell("a token again is the same image"), again[0] == 200 and again[1]["ImageId"] == first, again)
    until("available", is_at(sdk, BJ, first, "Available"))
    again = sdk.copy(HZ, "m-source1", BJ, ClientToken="once")
    check(tell("also after the end"), again[0] == 200 and again[1]["ImageId"] == first, again)
    told = sdk.copy(HZ, "m-source2", BJ, ClientToken="once")
    check(tell("with other parameters it is refused"), told[:2] == (400, "IdempotentParameterMismatch"), told)
    told = sdk.copy(HZ, "m-nothing", BJ, ClientToken="twice")
    check(tell("a token of a refused request is free"),
          told[0] == 404 and sdk.copy(HZ, "m-source3", BJ, ClientToken="twice")[0] == 200)


def queue(daemon, sdk):
    tell = lambda text: "%s: %s" % (sdk.name, text)
    new = [sdk.copy(HZ, "m-source%d" % n, SH)[1]["ImageId"] for n in range(1, 9)]
    states = [state(sdk, SH, image)[0] for image in new]
    check(tell("of eight copies five run and three wait"), states == ["Creating"] * 5 + ["Waiting"] * 3, states)
    check(tell("one that waits is cancelled"), sdk.cancel(SH, new[6])[0] == 200 and state(sdk, SH, new[6]) is None)
    check(tell("one that runs is cancelled"), sdk.cancel(SH, new[0])[0] == 200)
    check(tell("and the next has its turn"), until("turn", is_at(sdk, SH, new[5], "Creating")))
    check(tell("but only that one"), state(sdk, SH, new[7])[0] == "Waiting")
    return new


def life(daemon, sdk):
    """A daemon that is killed, and one that is ended in an orderly way, half way."""
    tell = lambda text: "%s: %s" % (sdk.name, text)
    new = queue(daemon, sdk)
    for how in ["SIGKILL", "SIGTERM"]:
        if how == "SIGKILL":
            daemon.kill()
        else:
            check(tell("SIGTERM ends the daemon in an orderly way"), daemon.stop())
        daemon.start()
        sdk = Legacy(daemon.at("alibaba"))
        states = [(state(sdk, SH, image) or ["gone"])[0] for image in new]
        wanted = ["gone", "Creating", "Creating", "Creating", "Creating", "Creating", "gone", "Waiting"]
        if how == "SIGTERM":
            wanted[1], wanted[7] = "gone", "Creating"
        check(tell("after %s what ran goes on and what waited waits" % how), states == wanted, states)
        victim = new[1] if how == "SIGKILL" else new[2]
        check(tell("after %s a cancel still works" % how),
              sdk.cancel(SH, victim)[0] == 200 and state(sdk, SH, victim) is None)
    for image in (new[3], new[4], new[5], new[7]):
        until("available", is_at(sdk, SH, image, "Available"), 120)
    sources = {new[3]: 4, new[4]: 5, new[5]: 6, new[7]: 8}
    check(tell("what was not cancelled arrives whole"),
          all(daemon.data(SH, image) == daemon.data(HZ, "m-source%d" % n) for image, n in sources.items()))
    check(tell("and nothing else is left"), until("clean", lambda: daemon.images(SH) == (sorted(sources), [])),
          daemon.images(SH))


def many(daemon, sdk):
    """200 copies started at once."""
    tell = lambda text: "%s: %s" % (sdk.name, text)
    sources = ["m-small%d" % n for n in range(200)]
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        told = list(pool.map(lambda image: Legacy(daemon.at("alibaba")).copy(HZ, image, BJ), sources))
    check(tell("200 copies are started at once"), all(status == 200 for status, _, _ in told),
          [t for t in told if t[0] != 200][:3])
    new = [answer["ImageId"] for _, answer, _ in told]
    check(tell("each with an image of its own"), len(set(new)) == 200)

    def count():
        found, page = 0, 1
        while True:
            rows = sdk.describe(BJ, PageSize=100, PageNumber=page)
            found += len([row for row in rows if row["ImageId"] in set(new)])
            page += 1
            if len(rows) < 100:
                return found
    check(tell("and all of them arrive"), until("200", lambda: count() == 200, 120))
    check(tell("byte by byte"), all(daemon.data(BJ, i) == daemon.data(HZ, s) for i, s in zip(new, sources)))


def race(daemon, sdk):
    """A cancel against the end of the copy, 200 times: one winner each, and both sides know which."""
    tell = lambda text: "%s: %s" % (sdk.name, text)
    won = {"cancel": 0, "copy": 0}
    wrong = []
    began, image = time.monotonic(), sdk.copy(HZ, "m-mid", BJ)[1]["ImageId"]
    until("available", is_at(sdk, BJ, image, "Available"))
    whole = time.monotonic() - began
    sdk.delete(BJ, image)
    for number in range(200):
        image = sdk.copy(HZ, "m-mid", BJ)[1]["ImageId"]
        # From at once to after the end.
        time.sleep(number % 50 / 40 * whole)
        status, code, _ = sdk.cancel(BJ, image)
        seen = state(sdk, BJ, image)
        if status == 200 and seen is None:
            won["cancel"] += 1
            if not until("gone", lambda: image not in daemon.images(BJ)[0], 10):
                wrong.append((number, "bytes of a cancelled copy"))
            if sdk.cancel(BJ, image)[1] != "InvalidImageId.NotFound":
                wrong.append((number, "a second cancel"))
        elif (status, code) == (400, "IncorrectImageStatus") and seen == ("Available", 100):
            won["copy"] += 1
            if daemon.data(BJ, image) != daemon.data(HZ, "m-mid") or sdk.delete(BJ, image)[0] != 200:
                wrong.append((number, "the image that won"))
        else:
            wrong.append((number, status, code, seen))
    check(tell("200 races have one winner each (%(cancel)d cancels, %(copy)d copies)" % won), not wrong, wrong[:5])
    check(tell("and each side has won some"), won["cancel"] > 0 and won["copy"] > 0, won)


def bad_input(daemon):
    """What no SDK sends, and what strangers send."""
    address = daemon.at("alibaba")
    ask = {"Action": "DescribeRegions", "Format": "JSON"}

    def told(target, **more):
        status, headers, body = raw.get(address, target, **more)
        try:
            return status, json.loads(body)["Code"]
        except (ValueError, KeyError):
            return status, body[:200]

    def is_told(what, wanted, *args, **more):
        seen = told(*args, **more)
        check("alibaba: %s" % what, seen == wanted, seen)

    is_told("an unsigned request is refused", (400, "IncompleteSignature"), "/?Action=DescribeRegions&Format=JSON")
    is_told("an unknown key is refused", (404, "InvalidAccessKeyId.NotFound"), raw.rpc("GET", ask, "AKIDNOBODY", SECRET))
    is_told("a wrong secret is refused", (400, "SignatureDoesNotMatch"), raw.rpc("GET", ask, KEY, "wrong"))
    for offset in (-1000, 1000):
        is_told("a stamp %d s off is refused" % offset, (400, "InvalidTimeStamp.Expired"),
                raw.rpc("GET", ask, KEY, SECRET, offset))
    once = raw.rpc("GET", ask, KEY, SECRET)
    status, headers, body = raw.get(address, once)
    check("alibaba: a request signed by hand is taken", status == 200 and "Regions" in json.loads(body), body)
    check("alibaba: it has its number in a header too", headers["x-acs-request-id"] == json.loads(body)["RequestId"])
    is_told("a replayed nonce is refused", (400, "SignatureNonceUsed"), once)
    is_told("a changed request is refused", (400, "SignatureDoesNotMatch"),
            raw.rpc("GET", ask, KEY, SECRET).replace("DescribeRegions", "DeleteImage"))
    is_told("another method is refused", (400, "SignatureDoesNotMatch"), raw.rpc("GET", ask, KEY, SECRET), method="POST")
    is_told("an unknown call is refused", (404, "InvalidAction.NotFound"),
            raw.rpc("GET", dict(ask, Action="RunInstances"), KEY, SECRET))
    is_told("a missing parameter is named", (400, "MissingParameter"),
            raw.rpc("GET", dict(ask, Action="CancelCopyImage", RegionId=SH), KEY, SECRET))
    is_told("an image id that is none is not found", (404, "InvalidImageId.NotFound"),
            raw.rpc("GET", dict(ask, Action="CancelCopyImage", RegionId=SH, ImageId="../../etc"), KEY, SECRET))
    is_told("a malformed query is refused", (400, "IncompleteSignature"), "/?Format=JSON&a=%zz")
    is_told("a head that is too long is refused", (400, "InvalidRequest.TooLarge"), "/?Format=JSON&a=" + "x" * 40000)
    is_told("a body that is too long is refused", (413, "RequestBodyTooLarge"), "/?Format=JSON", method="POST",
            body=b"x" * 100000)
    status, headers, body = raw.get(address, raw.rpc("GET", {"Action": "DescribeRegions"}, KEY, SECRET))
    check("alibaba: without a format it is XML", status == 200 and body.startswith(b"<?xml") and
          b"<DescribeRegionsResponse><Regions><Region><RegionId>cn-beijing</RegionId>" in body, body)
    status, headers, body = raw.get(address, raw.rpc("GET", {"Action": "Nothing<>"}, KEY, SECRET))
    check("alibaba: errors too", status == 404 and b"<Error><RequestId>" in body and
          b"<Code>InvalidAction.NotFound</Code>" in body and headers["content-type"] == "text/xml;charset=utf-8", body)
    check("alibaba: what is no HTTP is turned away", raw.send(address, b"\x16\x03\x01 hello\r\n\r\n")[0] in (0, 400))

    with socket.create_connection(address.rsplit(":", 1), timeout=30) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        is_told("a slow request holds up no other", (400, "IncompleteSignature"), "/?Format=JSON")
        status, _, body = raw.answer(slow)
        check("alibaba: and is told that it is late", (status, json.loads(body)["Code"]) == (408, "RequestTimeout"), body)

    sdk = Newer(address, OTHER, OTHER_SECRET)
    check("alibaba: another account sees none of the first's images",
          [row["ImageId"] for row in sdk.describe(HZ, Status=ALL)] == ["m-small-foreign", "m-small-shared", "m-small-system"],
          sdk.describe(HZ, Status=ALL))
    narrow = Newer(address, NARROW, NARROW_SECRET)
    check("alibaba: a key sees the regions it was granted", narrow.regions() == [HZ], narrow.regions())
    check("alibaba: and the images", [row["ImageId"] for row in narrow.describe(HZ)] == ["m-source1"])
    seen = narrow.copy(HZ, "m-source2", HZ)
    check("alibaba: others are not found", seen[:2] == (404, "InvalidImageId.NotFound"), seen)
    seen = narrow.copy(HZ, "m-source1", BJ)
    check("alibaba: nor are other regions", seen[:2] == (400, "DestinationRegion.NotFound"), seen)


def listening(daemon, sdk):
    """Whoever connects to the socket is told events as they happen."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(daemon.root + "/socket")
        lines = stream.makefile()
        new = sdk.copy(HZ, "m-small1", BJ)[1]["ImageId"]
        told = []
        while not told or (told[-1]["event"], told[-1]["state"]) != ("copy", "done"):
            told.append(json.loads(lines.readline()))
    states = [(event["event"], event["state"]) for event in told if new in json.dumps(event)]
    check("a socket tells events", states == [("image", "creating"), ("copy", "queued"), ("copy", "copying"),
                                              ("image", "available"), ("copy", "done")], states)
    numbers = [event["number"] for event in told]
    check("with numbers that ascend by one", numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers)


def watching(daemon):
    page = daemon.get("/metrics")
    check("metrics count the calls", 'blockferry_requests_total{cloud="alibaba",call="DescribeImages",code=""}' in page, page[:300])
    check("metrics count the copies", 'blockferry_copies{stage="done"}' in page)
    check("the daemon says that it is well", daemon.get("/healthz") == "ok\n")
    told = daemon.told()
    states = {}
    for event in told:
        if event["event"] == "copy":
            states.setdefault(event["job"], []).append(event["state"])
    ends = {"done", "cancelled", "failed"}
    check("events tell each copy from its start", all(s[0] == "queued" for s in states.values()))
    check("and to one end", all(sum(x in ends for x in s) == 1 and s[-1] in ends for s in states.values()),
          [s for s in states.values() if s[-1] not in ends][:3])
    with open(daemon.root + "/log") as file:
        log = file.read()
    lines = [json.loads(line) for line in log.splitlines()]
    check("the log has a line of JSON for each request", len(lines) > 100 and all("request_id" in line for line in lines))
    check("and no secret", not any(secret in log for secret in (SECRET, OTHER_SECRET, NARROW_SECRET)))


def run():
    own = 'project = "p1"\n'
    images = {(HZ, "m-source%d" % n): own for n in range(1, 9)}
    images.update({(HZ, "m-small%d" % n): own for n in range(200)})
    images[HZ, "m-mid"] = own
    images[HZ, "m-small-system"] = 'project = "vendor"\nkind = "system"\n'
    images[HZ, "m-small-foreign"] = 'project = "p2"\n'
    images[HZ, "m-small-shared"] = 'project = "p2"\nshared_with = ["p1"]\n'
    keys = {
        KEY: 'secret = "%s"\nproject = "p1"\nregions = ["cn-*"]\nimages = ["*"]' % SECRET,
        OTHER: 'secret = "%s"\nproject = "p2"\nregions = ["cn-*"]\nimages = ["*"]' % OTHER_SECRET,
        NARROW: 'secret = "%s"\nproject = "p1"\nregions = ["cn-hangzhou"]\nimages = ["m-source1"]' % NARROW_SECRET,
    }
    regions = {HZ: "", SH: 'rate = "12MiB/s"', BJ: ""}
    daemon = Daemon("alibaba", regions, images, keys, ['cloud = "alibaba"'], {"m-mid": 8 * MIB})
    address = daemon.at("alibaba")
    basic(daemon, Legacy(address), 1)
    basic(daemon, Newer(address), 2)
    basic(daemon, Newer(address, algorithm="v2"), 3)
    validation(daemon, Legacy(address))
    tokens(daemon, Newer(address))
    bad_input(daemon)
    listening(daemon, Legacy(address))
    many(daemon, Legacy(address))
    race(daemon, Legacy(address))
    life(daemon, Legacy(address))
    watching(daemon)
    check("the daemon ends in an orderly way", daemon.stop())
