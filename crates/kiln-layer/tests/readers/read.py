"""Lists tars as Python's tarfile reads them: the same input and output as read.go."""

import hashlib
import io
import struct
import sys
import tarfile

KINDS = {b"0": 1, b"\0": 1, b"7": 1, b"S": 1, b"1": 4, b"2": 3, b"3": 5, b"4": 6, b"5": 2, b"6": 7}


def hexadecimal(text):
    return text.encode("utf-8", "surrogateescape").hex()


def list_entries(data):
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as archive:
        for member in archive:
            kind = 1 if member.isreg() else KINDS.get(member.type, 0)
            content, size = "-", 0
            if kind == 1:
                read = archive.extractfile(member).read()
                content, size = hashlib.sha256(read).hexdigest(), len(read)
                if size != member.size:
                    raise tarfile.ReadError("cut")
            link = member.linkname if kind in (3, 4) else ""
            name = member.name.rstrip("/")
            print(kind, hexadecimal(name), oct(member.mode & 0o7777)[2:], member.uid, member.gid,
                  int(member.mtime // 1), size, hexadecimal(link), content)


def main():
    while length := sys.stdin.buffer.read(4):
        data = sys.stdin.buffer.read(struct.unpack("<I", length)[0])
        print("case")
        try:
            list_entries(data)
        except Exception:
            print("error")


main()
