"""A region that is a prefix of an object store, which is moto's, beside one that is a directory."""
import atexit
import os
import socket
import subprocess

from alibaba import BJ, HZ, KEY, SECRET, Legacy, Newer, is_at, state
from daemon import Daemon, check, until

PYTHON = os.environ["STORE_PYTHON"]
BUCKET = "clouds-bucket"


def tell(text):
    return "object store: " + text


class Store:
    def __init__(self):
        # Whose proxy and profile these may be, they are none of this store's.
        os.environ.update(AWS_ACCESS_KEY_ID="lab", AWS_SECRET_ACCESS_KEY="lab", AWS_CONFIG_FILE="/nonexistent",
                          AWS_SHARED_CREDENTIALS_FILE="/nonexistent", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            os.environ.pop(name, None)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.endpoint = "http://127.0.0.1:%d" % port
        serve = "from moto.server import main; main()"
        self.process = subprocess.Popen([PYTHON, "-c", serve, "-H", "127.0.0.1", "-p", str(port)],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(self.process.kill)
        check(tell("moto serves"), until("moto", lambda: self.listens(port)))
        self.ask("s3.create_bucket(Bucket=%r)" % BUCKET)

    @staticmethod
    def listens(port):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def ask(self, code):
        """What another client prints."""
        begin = ("import boto3\nfrom botocore.config import Config\ns3 = boto3.client('s3', endpoint_url=%r, "
                 "region_name='us-east-1', config=Config(s3={'addressing_style': 'path'}))\n" % self.endpoint)
        return subprocess.run([PYTHON, "-c", begin + code], check=True, capture_output=True, text=True).stdout

    def keys(self, image):
        """Keys of an image, but its heads, and uploads under way."""
        listed = self.ask("print(*[o['Key'] for o in s3.list_objects_v2(Bucket=%r, Prefix='north/images/%s/').get('Contents', [])])\n"
                          "print(len(s3.list_multipart_uploads(Bucket=%r).get('Uploads', [])))" % (BUCKET, image, BUCKET)).split("\n")
        return [key for key in listed[0].split() if not key.split("/")[3].startswith("head")], int(listed[1])

    def location(self, image=None):
        words = "?endpoint=%s&region=us-east-1&allow_http=true" % self.endpoint
        return "s3://%s/north%s%s" % (BUCKET, "" if image is None else "/" + image, words)


def run():
    store = Store()
    images = {(HZ, "m-source%d" % n): 'project = "p1"\n' for n in range(1, 5)}
    keys = {KEY: 'secret = "%s"\nproject = "p1"\nregions = ["cn-*"]\nimages = ["*"]' % SECRET}
    daemon = Daemon("store", {HZ: "", BJ: 'rate = "24MiB/s"'}, images, keys, ['cloud = "alibaba"'],
                    locations={BJ: store.location()})
    old, new = Legacy(daemon.at("alibaba")), Newer(daemon.at("alibaba"))
    before = daemon.data(HZ, "m-source1")

    status, told, _ = old.copy(HZ, "m-source1", BJ, DestinationImageName="kept")
    kept = told["ImageId"]
    check(tell("a copy into it gets to its end"), status == 200 and until("available", is_at(new, BJ, kept, "Available")), told)
    check(tell("its bytes are those of the source"), daemon.read(store.location(kept)) == before)
    status, told, _ = new.copy(BJ, kept, HZ, DestinationImageName="back")
    back = told["ImageId"]
    check(tell("a copy out of it too"), status == 200 and until("available", is_at(new, HZ, back, "Available")), told)
    check(tell("to the same bytes"), daemon.data(HZ, back) == before)

    image = old.copy(HZ, "m-source2", BJ)[1]["ImageId"]
    check(tell("a copy is seen half way"), until("half way", lambda: 20 <= (state(old, BJ, image) or [None, 0])[1] < 100))
    seen = new.cancel(BJ, image)
    check(tell("a cancel is taken half way"), seen[0] == 200, seen)
    check(tell("the image is gone"), state(old, BJ, image) is None, state(old, BJ, image))
    check(tell("and nothing is left but its head"), until("clean", lambda: store.keys(image) == ([], 0)), store.keys(image))
    seen = new.cancel(BJ, kept)
    check(tell("a finished copy is not cancelled"), seen[0] != 200 and state(old, BJ, kept)[0] == "Available", seen)

    image = old.copy(HZ, "m-source3", BJ)[1]["ImageId"]
    until("half way", lambda: (state(old, BJ, image) or [None, 100])[1] >= 20)
    daemon.kill()
    daemon.start()
    old, new = Legacy(daemon.at("alibaba")), Newer(daemon.at("alibaba"))
    check(tell("a copy goes on after SIGKILL"), until("available", is_at(old, BJ, image, "Available"), 120), state(old, BJ, image))
    check(tell("to the same bytes as its source"), daemon.read(store.location(image)) == daemon.data(HZ, "m-source3"))
    image = old.copy(HZ, "m-source4", BJ)[1]["ImageId"]
    until("half way", lambda: (state(old, BJ, image) or [None, 100])[1] >= 20)
    daemon.kill()
    daemon.start()
    old, new = Legacy(daemon.at("alibaba")), Newer(daemon.at("alibaba"))
    seen = old.cancel(BJ, image)
    check(tell("and is cancelled after SIGKILL"), seen[0] == 200, seen)
    check(tell("with nothing left but its head"), until("clean", lambda: store.keys(image) == ([], 0)), store.keys(image))
    seen = new.delete(BJ, kept)
    check(tell("an image is deleted"), seen[0] == 200 and state(old, BJ, kept) is None, seen)
    check(tell("with its bytes"), until("deleted", lambda: store.keys(kept) == ([], 0)), store.keys(kept))
    check(tell("the daemon ends in an orderly way"), daemon.stop())
