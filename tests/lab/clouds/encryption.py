"""Images under keys of a keyring: by Alibaba's KMSKeyId and by Huawei's cmk_id."""
import os

import alibaba
import huawei
from alibaba import BJ, HZ, KEY, SECRET, SH, is_at, state
from daemon import WORK, Daemon, check, run as ferry, until

FIRST, SECOND = "images-2026", "images-2027"


def keyring():
    path = os.path.join(WORK, "keyring")
    ferry("keyring", "init", path)
    for key in (FIRST, SECOND):
        ferry("keyring", "add", path, key)
    return path


def lies_open(folder, plain):
    """Whether a piece of the plain bytes is to be found in any file below that folder."""
    piece = plain[len(plain) // 2:][:64]
    for where, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(where, name), "rb") as file:
                if piece in file.read():
                    return True
    return False


def by_alibaba(ring):
    tell = lambda text: "encryption, alibaba: " + text
    images = {(HZ, "m-source%d" % n): 'project = "p1"\n' for n in range(1, 4)}
    keys = {KEY: 'secret = "%s"\nproject = "p1"\nregions = ["cn-*"]\nimages = ["*"]' % SECRET}
    has = 'encryption_keys = ["%s", "%s"]'
    regions = {HZ: "", SH: 'rate = "12MiB/s"\n' + has % (FIRST, SECOND), BJ: has % (FIRST, SECOND)}
    daemon = Daemon("keys-alibaba", regions, images, keys, ['cloud = "alibaba"'], top=['keyring = "%s"' % ring])
    before = daemon.data(HZ, "m-source1")
    old, new = alibaba.Legacy(daemon.at("alibaba")), alibaba.Newer(daemon.at("alibaba"))
    place = lambda region, image: "dir://%s/%s" % (daemon.dir(region), image)

    made = {}
    for sdk, key, asked in [(old, SECOND, {"Encrypted": "true", "KMSKeyId": SECOND}), (new, FIRST, {"Encrypted": True})]:
        status, told, _ = sdk.copy(HZ, "m-source1", BJ, DestinationImageName="under-%s" % key, **asked)
        check(tell("a copy under %s is taken" % key), status == 200, told)
        made[key] = told["ImageId"]
        check(tell("and gets to its end"), until("available", is_at(sdk, BJ, made[key], "Available")))
        check(tell("its bytes are those of the source, to who has the keys"),
              daemon.read(place(BJ, made[key]), "--keyring", ring, "--decrypt") == before)
    check(tell("and they lie open nowhere"), not lies_open(daemon.dir(BJ), before))
    check(tell("as they do in the source's region"), lies_open(daemon.dir(HZ), before))

    for what, asked, wanted in [
        ("a key that is none", {"Encrypted": "true", "KMSKeyId": "no-such-key"}, (404, "InvalidParameter.KMSKeyId.NotFound")),
        ("a key without encryption", {"KMSKeyId": FIRST}, (400, "InvalidParameter.EncryptedIllegal")),
    ]:
        seen = old.copy(HZ, "m-source1", BJ, **asked)
        check(tell("%s is refused" % what), seen[:2] == wanted, seen)
    seen = old.copy(BJ, made[FIRST], HZ)
    check(tell("an encrypted image goes to no region without keys"), seen[:2] == (403, "OperationDeined.EncryptedSnapshot"), seen)

    # Half way: cancelled, and killed.
    cancelled = old.copy(HZ, "m-source2", SH, Encrypted="true", KMSKeyId=FIRST)[1]["ImageId"]
    killed = old.copy(HZ, "m-source3", SH, Encrypted="true", KMSKeyId=SECOND)[1]["ImageId"]
    for image in (cancelled, killed):
        until("half way", lambda: (state(old, SH, image) or [None, 100])[1] >= 20)
    seen = old.cancel(SH, cancelled)
    check(tell("a cancel is taken half way"), seen[0] == 200, seen)
    check(tell("and leaves nothing of its image"), until("clean", lambda: cancelled not in str(daemon.images(SH))), daemon.images(SH))
    daemon.kill()
    check(tell("what a SIGKILL leaves lies open nowhere"), not lies_open(daemon.dir(SH), daemon.data(HZ, "m-source3")))
    daemon.start()
    old = alibaba.Legacy(daemon.at("alibaba"))
    check(tell("and it goes on"), until("available", is_at(old, SH, killed, "Available"), 120), state(old, SH, killed))
    check(tell("to the same bytes"), daemon.read(place(SH, killed), "--keyring", ring, "--decrypt") == daemon.data(HZ, "m-source3"))
    check(tell("the daemon ends in an orderly way"), daemon.stop())


def by_huawei(ring):
    tell = lambda text: "encryption, huawei: " + text
    source, region = huawei.image_of("mid"), huawei.NORTH
    keys = {KEY: 'secret = "%s"\nproject = "%s"\nregions = ["cn-*"]\nimages = ["*"]' % (SECRET, huawei.P1)}
    daemon = Daemon("keys-huawei", {region: 'encryption_keys = ["%s"]' % SECOND}, {(region, source): 'project = "%s"\n' % huawei.P1},
                    keys, ['cloud = "huawei"\nregion = "%s"' % region], {source: 8 << 20}, top=['keyring = "%s"' % ring])
    north = huawei.Region(daemon, region)
    job = north.copy(source, name="under a key", cmk_id=SECOND)[1]
    check(tell("a copy under a key gets to its end"), until("success", lambda: north.status(job) == "SUCCESS"))
    new = north.job(job)[1].entities.image_id
    plain = daemon.data(region, source)
    check(tell("its bytes are those of the source, to who has the keys"),
          daemon.read("dir://%s/%s" % (daemon.dir(region), new), "--keyring", ring, "--decrypt") == plain)
    check(tell("and they lie open nowhere"), not lies_open(os.path.join(daemon.dir(region), new), plain))
    seen = north.copy(source, name="another", cmk_id=FIRST)
    check(tell("a key of another region is none"), seen[:2] == (400, "IMG.0095"), seen)
    check(tell("the daemon ends in an orderly way"), daemon.stop())


def run():
    ring = keyring()
    by_alibaba(ring)
    by_huawei(ring)
