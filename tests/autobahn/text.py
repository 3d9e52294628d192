"""Becomes a module of the suite: text whose characters are bytes, and the places where it meets the library."""

import binascii


def to_bytes(text):
    if not isinstance(text, str):
        return bytes(text)
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf8")


def of_bytes(data):
    return data.decode("latin-1") if isinstance(data, (bytes, bytearray)) else data


def to_hex(text):
    return binascii.b2a_hex(to_bytes(text)).decode()


def of_hex(text):
    return binascii.a2b_hex(to_bytes(text)).decode("latin-1")


def or_none(payload):
    return None if payload is None else to_bytes(payload)


class Coerce:
    """Stands between the suite's protocol and the library's."""

    def sendFrame(self, *args, **named):
        for name in ("payload", "mask"):
            if named.get(name) is not None:
                named[name] = to_bytes(named[name])
        length = named.pop("payload_len", None)
        if length is not None and named.get("payload"):
            named["payload"] = (named["payload"] * (length // len(named["payload"]) + 1))[:length]
        return super().sendFrame(*args, **named)

    def sendMessage(self, payload, *args, **named):
        return super().sendMessage(to_bytes(payload), *args, **named)

    def sendPing(self, payload=None):
        return super().sendPing(or_none(payload))

    def sendPong(self, payload=None):
        return super().sendPong(or_none(payload))

    def sendMessageFrame(self, payload, sync=False):
        return super().sendMessageFrame(to_bytes(payload), sync=sync)

    def sendMessageFrameData(self, payload, sync=False):
        return super().sendMessageFrameData(to_bytes(payload), sync=sync)

    def sendCloseFrame(self, code=None, reasonUtf8=None, isReply=False):
        return super().sendCloseFrame(code=code, reasonUtf8=or_none(reasonUtf8), isReply=isReply)

    def sendData(self, data, sync=False, chopsize=None):
        return super().sendData(to_bytes(data), sync=sync, chopsize=chopsize)
