"""Requests that no SDK would send: signed by hand, or not at all."""
import base64
import hashlib
import hmac
import socket
import time
import urllib.parse
import uuid


def quoted(text):
    return urllib.parse.quote(text, safe="~")


def rpc(method, params, key, secret, offset=0, nonce=None):
    """The target of an RPC call of Alibaba's, signed by HMAC-SHA1."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + offset))
    params = dict(params, AccessKeyId=key, SignatureMethod="HMAC-SHA1", SignatureVersion="1.0", Version="2014-05-26",
                  SignatureNonce=nonce or uuid.uuid4().hex, Timestamp=stamp)
    query = "&".join("%s=%s" % (quoted(k), quoted(v)) for k, v in sorted(params.items()))
    to_sign = "%s&%%2F&%s" % (method, quoted(query))
    mac = hmac.new((secret + "&").encode(), to_sign.encode(), hashlib.sha1).digest()
    return "/?%s&Signature=%s" % (query, quoted(base64.b64encode(mac).decode()))


def send(address, data, patience=60):
    """Sends bytes as they are, and returns status, headers and body of what comes back."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=patience) as stream:
        stream.sendall(data)
        return answer(stream)


def answer(stream):
    got = b""
    while b"\r\n\r\n" not in got:
        more = stream.recv(65536)
        if not more:
            return 0, {}, got
        got += more
    head, body = got.split(b"\r\n\r\n", 1)
    lines = head.decode("latin-1").split("\r\n")
    headers = {k.strip().lower(): v.strip() for k, v in (line.split(":", 1) for line in lines[1:])}
    while len(body) < int(headers.get("content-length", 0)):
        more = stream.recv(65536)
        if not more:
            break
        body += more
    return int(lines[0].split()[1]), headers, body


def get(address, target, method="GET", headers="", body=b""):
    head = "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n%s\r\n" % (method, target, address, len(body), headers)
    return send(address, head.encode() + body)
