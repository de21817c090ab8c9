"""What `record` and `compare` share: base images, build contexts, and the facts of an image.

A fact is anything that must be equal on every machine: the image config without times, the history
without times, every layer's entries and the final tree of files, both without what the base brought.
Only the standard library is used.
"""

import base64
import bz2
import contextlib
import email.utils
import fnmatch
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import pathlib
import platform
import posixpath
import shutil
import subprocess
import tarfile
import threading

CORPUS = pathlib.Path(__file__).resolve().parent
# Every file of a context that names no mtime of its own gets this one (2024-01-02T03:04:05Z).
CONTEXT_MTIME = 1704164645
# Base layers' files carry this one, so that a base's diff ID depends on its bytes alone.
BASE_MTIME = 1700000000
BASE_CREATED = "2023-11-14T22:13:20Z"
# The harness's own files of a case; all others belong to the build context.
OWN_FILES = {"case.json", "context.json", "expected.json"}
TEXT_LIMIT = 600
# This machine's name in image configs; facts call it "native".
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


DEFAULT_BASE = "kiln.test/busybox:latest"


class SkippedCase(Exception):
    """The case needs something that this machine does not have."""


def selected_names(patterns):
    """The names of the cases that match any of the patterns; all of them where there is no pattern."""
    names = sorted(p.parent.name for p in CORPUS.glob("*/case.json"))
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise SystemExit(f"no case is called {pattern}")
    return [n for n in names if not patterns or matches(n, patterns)]


def read_case(name):
    return json.loads((CORPUS / name / "case.json").read_text())


# ---------------------------------------------------------------- contexts


def materialise_context(name, target, mtime=CONTEXT_MTIME):
    """Copies a case's context to `target`, with modes, owners and times that do not depend on git."""
    source = CORPUS / name
    target = pathlib.Path(target)
    for directory, folders, files in os.walk(source):
        relative = pathlib.Path(directory).relative_to(source)
        (target / relative).mkdir(parents=True, exist_ok=True)
        for file in sorted(files):
            if relative == pathlib.Path(".") and file in OWN_FILES:
                continue
            origin, copy = pathlib.Path(directory) / file, target / relative / file
            shutil.copyfile(origin, copy)
            copy.chmod(0o755 if os.access(origin, os.X_OK) else 0o644)
    description = source / "context.json"
    entries = json.loads(description.read_text()) if description.exists() else []
    for entry in entries:
        make_entry(target, entry)
    settle_times(target, mtime, {e["path"]: e["mtime"] for e in entries if "mtime" in e})


def content_of(entry):
    if "base64" in entry:
        return base64.b64decode(entry["base64"])
    return entry.get("content", "").encode() * entry.get("repeat", 1)


def make_entry(root, entry):
    path = root / entry["path"]
    kind = entry.get("type", "file")
    if kind == "remove":
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        if not path.exists() or "content" in entry or "base64" in entry:
            path.write_bytes(content_of(entry))
    elif kind == "dir":
        path.mkdir(exist_ok=True)
    elif kind == "symlink":
        os.symlink(entry["target"], path)
        return
    elif kind == "hardlink":
        os.link(root / entry["target"], path)
        return
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "tar":
        path.write_bytes(make_archive(entry))
    else:
        raise ValueError(f"{entry['path']}: unknown type {kind}")
    if "uid" in entry or "gid" in entry:
        need_root(entry)
        os.chown(path, entry.get("uid", 0), entry.get("gid", 0))
    for key, value in entry.get("xattrs", {}).items():
        os.setxattr(path, key, base64.b64decode(value) if key == "security.capability" else value.encode())
    os.chmod(path, int(entry.get("mode", "755" if kind == "dir" else "644"), 8))


def need_root(entry):
    if os.geteuid() != 0:
        raise SkippedCase(f"{entry['path']} needs another owner, which only root can give")


def settle_times(root, default, wanted):
    for directory, folders, files in os.walk(root, topdown=False):
        for name in files + folders:
            path = pathlib.Path(directory) / name
            mtime = wanted.get(str(path.relative_to(root)), default)
            os.utime(path, ns=(int(mtime * 1e9), int(mtime * 1e9)), follow_symlinks=False)
    os.utime(root, (default, default))


TAR_TYPES = {
    "file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE, "char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE,
}
TAR_FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def add_member(archive, entry, default_mtime):
    kind = entry.get("type", "file")
    member = tarfile.TarInfo(entry["path"])
    member.type = TAR_TYPES[kind]
    member.mode = int(entry.get("mode", "755" if kind == "dir" else "644"), 8)
    member.uid, member.gid = entry.get("uid", 0), entry.get("gid", 0)
    member.uname, member.gname = entry.get("uname", ""), entry.get("gname", "")
    member.mtime = entry.get("mtime", default_mtime)
    member.linkname = entry.get("target", "")
    member.devmajor, member.devminor = entry.get("major", 0), entry.get("minor", 0)
    for key, value in entry.get("xattrs", {}).items():
        member.pax_headers[f"SCHILY.xattr.{key}"] = value
    data = content_of(entry) if kind == "file" else b""
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def make_archive(entry):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=TAR_FORMATS[entry.get("format", "pax")]) as archive:
        for member in entry["entries"]:
            add_member(archive, member, CONTEXT_MTIME)
    data = buffer.getvalue()
    compression = entry.get("compression", "none")
    if compression == "zstd":
        return subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout
    packers = {
        "none": lambda d: d,
        "gz": lambda d: gzip.compress(d, mtime=0),
        "gz-members": lambda d: gzip.compress(d[:700], mtime=0) + gzip.compress(d[700:], mtime=0),
        "bz2": bz2.compress,
        "xz": lzma.compress,
    }
    data = packers[compression](data)
    return data[: entry["cut"]] if "cut" in entry else data


# ---------------------------------------------------------------- what ADD downloads

SERVER = ("127.0.0.1", 38461)


@contextlib.contextmanager
def serving(case):
    """Serves a case's `serve` (path -> content, modified, disposition) at SERVER while it is built."""
    if "serve" not in case:
        yield
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self, with_body=True):
            entry = case["serve"].get(self.path.split("?")[0])
            body = entry["content"].encode() if entry else b"no such page\n"
            self.send_response(200 if entry else 404)
            self.send_header("Content-Length", str(len(body)))
            if entry and "modified" in entry:
                self.send_header("Last-Modified", email.utils.formatdate(entry["modified"], usegmt=True))
            if entry and "disposition" in entry:
                self.send_header("Content-Disposition", entry["disposition"])
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET(with_body=False)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(SERVER, Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


# ---------------------------------------------------------------- base images


def make_bases(folder):
    """Makes the base images: one OCI layout each, which is also a docker archive's content.

    Returns name -> (layout folder, archive file, manifest digest), None for a base that cannot be had.
    """
    folder = pathlib.Path(folder)
    made = {}
    for name, description in json.loads((CORPUS / "bases.json").read_text()).items():
        layers = [base_layer(layer) for layer in description["layers"]]
        if any(layer is None for layer in layers):
            made[name] = None
            continue
        made[name] = write_layout(folder / name.replace("/", "_").replace(":", "_"), name, layers, description)
    return made


def base_layer(layer):
    if layer == "busybox":
        return busybox_layer()
    if layer == "debian":
        rootfs = os.environ.get("CORPUS_DEBIAN")
        return pathlib.Path(rootfs).read_bytes() if rootfs else None
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in layer:
            add_member(archive, entry, BASE_MTIME)
    return buffer.getvalue()


def busybox_layer():
    program = os.environ.get("CORPUS_BUSYBOX") or shutil.which("busybox") or "/bin/busybox"
    advice = "install the package busybox-static, or name a static one in CORPUS_BUSYBOX"
    if not os.path.exists(program):
        raise SystemExit(f"busybox is missing: {advice}")
    if b"/ld-" in pathlib.Path(program).read_bytes()[:4096]:
        raise SystemExit(f"{program} needs a dynamic linker, which the base image has not: {advice}")
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    entries = [{"path": d, "type": "dir"} for d in ("bin", "dev", "etc", "home", "proc", "sys", "usr", "usr/bin", "var")]
    entries += [{"path": "root", "type": "dir", "mode": "700"}, {"path": "tmp", "type": "dir", "mode": "1777"}]
    entries += [{"path": "etc/passwd", "content": "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\n"
                 "nobody:x:65534:65534::/home:/bin/false\napp:x:1500:1600:App:/home/app:/bin/sh\n"}]
    entries += [{"path": "etc/group", "content": "root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\nstaff:x:50:app\nappgroup:x:1600:\n"}]
    entries += [{"path": "bin/busybox", "mode": "755",
                 "base64": base64.b64encode(pathlib.Path(program).read_bytes()).decode()}]
    entries += [{"path": f"bin/{a}", "type": "symlink", "target": "busybox", "mode": "777"}
                for a in sorted(set(applets) - {"busybox"})]
    return base_layer(entries)


def write_layout(layout, name, layers, description):
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(data):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return digest

    digests = [blob(layer) for layer in layers]
    history = [{"created": BASE_CREATED, "created_by": f"corpus base layer {n}"} for n in range(len(layers))]
    config = {"architecture": ARCHITECTURE, "os": "linux", "created": BASE_CREATED, "config": description["config"],
              "rootfs": {"type": "layers", "diff_ids": [f"sha256:{d}" for d in digests]}, "history": history}
    config_bytes = json.dumps(config).encode()
    config_digest = blob(config_bytes)
    kinds = "application/vnd.oci.image."
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": kinds + "manifest.v1+json",
        "config": {"mediaType": kinds + "config.v1+json", "digest": f"sha256:{config_digest}", "size": len(config_bytes)},
        "layers": [{"mediaType": kinds + "layer.v1.tar", "digest": f"sha256:{d}", "size": len(layer)}
                   for d, layer in zip(digests, layers)],
    }).encode()
    manifest_digest = blob(manifest)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({
        "schemaVersion": 2, "mediaType": kinds + "index.v1+json",
        "manifests": [{"mediaType": kinds + "manifest.v1+json", "digest": f"sha256:{manifest_digest}", "size": len(manifest),
                       "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rsplit(":", 1)[1]}}],
    }))
    (layout / "manifest.json").write_text(json.dumps([
        {"Config": f"blobs/sha256/{config_digest}", "RepoTags": [name], "Layers": [f"blobs/sha256/{d}" for d in digests]}]))
    archive = pathlib.Path(f"{layout}.tar")
    with tarfile.open(archive, "w") as packed:
        for item in sorted(layout.iterdir()):
            packed.add(item, item.name)
    return layout, archive, f"sha256:{manifest_digest}"


def base_layers(case):
    """How many layers the final stage's base brings; `base` is scratch or a base's name."""
    base = case.get("base", DEFAULT_BASE)
    if base == "scratch":
        return 0
    return len(json.loads((CORPUS / "bases.json").read_text())[base]["layers"])


def bases_of(name, bases):
    """The bases a case names; raises SkippedCase when one of them cannot be had here."""
    case = read_case(name)
    if case.get("machine", ARCHITECTURE) != ARCHITECTURE:
        raise SkippedCase(f"its facts hold on {case['machine']}")
    if case.get("privileged") and os.geteuid() != 0:
        raise SkippedCase("its context or its layers need root")
    wanted = case.get("bases", [DEFAULT_BASE])
    missing = [b for b in wanted if bases[b] is None]
    if missing:
        raise SkippedCase(f"no {', '.join(missing)} here (CORPUS_DEBIAN names a root file system's tar)")
    return {b: bases[b] for b in wanted}


# ---------------------------------------------------------------- facts


class OciArchive:
    """Reads blobs of an OCI archive, checking each digest."""

    def __init__(self, path):
        self.tar = tarfile.open(path)

    def member(self, name):
        return self.tar.extractfile(name).read()

    def blob(self, digest):
        algorithm, _, hexadecimal = digest.partition(":")
        data = self.member(f"blobs/{algorithm}/{hexadecimal}")
        if hashlib.new(algorithm, data).hexdigest() != hexadecimal:
            raise ValueError(f"blob {digest} has other bytes")
        return data

    def image(self):
        index = json.loads(self.member("index.json"))
        while True:
            descriptor = index["manifests"][0]
            document = json.loads(self.blob(descriptor["digest"]))
            if "layers" in document:
                return document
            index = document

    def layer(self, descriptor):
        data = self.blob(descriptor["digest"])
        media_type = descriptor["mediaType"]
        if media_type.endswith("gzip"):
            return gzip.decompress(data)
        if media_type.endswith("zstd"):
            return subprocess.run(["zstd", "-d", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout
        return data


def read_layer(data):
    """path -> attributes, in the order of the tar; `_links` maps a hard link to its target."""
    entries = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            name = "/" + member.name.lstrip("/").removeprefix("./").rstrip("/")
            entries[name if name != "/." else "/"] = read_member(archive, member)
    return entries


def read_member(archive, member):
    kinds = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink", tarfile.FIFOTYPE: "fifo",
             tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block"}
    kind = kinds.get(member.type, "file")
    facts = {"type": kind, "mode": f"{member.mode & 0o7777:04o}", "uid": member.uid, "gid": member.gid, "mtime": member.mtime}
    if kind == "file":
        data = archive.extractfile(member).read()
        facts["size"] = len(data)
        text = printable(data)
        if text is not None:
            facts["text"] = text
        else:
            facts["sha256"] = hashlib.sha256(data).hexdigest()
    if kind in ("symlink", "hardlink"):
        facts["target"] = member.linkname
    if kind in ("char", "block"):
        facts["device"] = f"{member.devmajor}:{member.devminor}"
    xattrs = {k.removeprefix("SCHILY.xattr."): printable_xattr(v) for k, v in member.pax_headers.items()
              if k.startswith("SCHILY.xattr.")}
    if xattrs:
        facts["xattrs"] = xattrs
    return facts


def printable(data):
    if len(data) > TEXT_LIMIT:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\n\t" for c in text) else None


def printable_xattr(value):
    data = value.encode("utf-8", "surrogateescape")
    text = printable(data)
    return text if text is not None else "hex:" + data.hex()


def resolve_links(entries, lower):
    """Turns hard links of one layer into files with a group, named by its first path in order."""
    origin, groups = {}, {}
    for path, facts in entries.items():
        if facts["type"] == "hardlink":
            target = "/" + facts["target"].lstrip("/").removeprefix("./")
            origin[path] = origin.get(target, target)
            groups.setdefault(origin[path], [origin[path]]).append(path)
    resolved = {}
    for path, facts in entries.items():
        if path in origin:
            source = entries.get(origin[path]) or lower.get(origin[path]) or {"type": "missing"}
            facts = dict(source)
        resolved[path] = dict(facts)
    for members in groups.values():
        for path in members:
            if path in resolved:
                resolved[path]["links"] = sorted(members)
    return resolved


def apply_layer(tree, entries):
    """The tree after a layer; whiteouts hide only what lies below."""
    after = dict(tree)

    def remove(path):
        for known in [p for p in after if p == path or p.startswith(path.rstrip("/") + "/")]:
            del after[known]

    for path in entries:
        folder, name = posixpath.split(path)
        if name == ".wh..wh..opq":
            for known in [p for p in after if p.startswith(folder.rstrip("/") + "/")]:
                del after[known]
        elif name.startswith(".wh."):
            remove(posixpath.join(folder, name[4:]))
    for path, facts in entries.items():
        if posixpath.basename(path).startswith(".wh."):
            continue
        known = after.get(path)
        if known and known["type"] == "dir" and facts["type"] != "dir":
            remove(path)
        after[path] = facts
    return after


def same(one, other):
    return without_times(one) == without_times(other)


def without_times(facts):
    return {k: v for k, v in facts.items() if k != "mtime"}


def matches(path, patterns):
    return any(fnmatch.fnmatchcase(path, p) for p in patterns)


def shown(path, facts, case):
    facts = dict(facts)
    if not (case.get("mtimes") is True or path in case.get("mtimes", [])):
        facts.pop("mtime", None)
    if matches(path, case.get("ignore_content", [])):
        for key in ("size", "text", "sha256"):
            facts.pop(key, None)
    return facts


def facts_of(archive_path, base_layers, case):
    """The facts of the image in an OCI archive whose first `base_layers` layers came from its base."""
    archive = OciArchive(archive_path)
    manifest = archive.image()
    config = json.loads(archive.blob(manifest["config"]["digest"]))
    history = config.get("history") or []
    layers = manifest["layers"] or []
    diff_ids = config["rootfs"].get("diff_ids") or []
    if len(diff_ids) != len(layers):
        raise ValueError("the config has other layers than the manifest")
    tree, new_layers = {}, []
    base_tree = {}
    for number, descriptor in enumerate(layers):
        data = archive.layer(descriptor)
        if "sha256:" + hashlib.sha256(data).hexdigest() != diff_ids[number]:
            raise ValueError(f"layer {number} has another diff ID")
        entries = resolve_links(read_layer(data), tree)
        if number >= base_layers:
            new_layers.append(layer_facts(entries, tree, case))
        tree = apply_layer(tree, entries)
        if number + 1 == base_layers:
            base_tree = tree
    tree, base_tree = settled_links(tree), settled_links(base_tree)
    image = {k: v for k, v in config.items() if k not in ("created", "history", "rootfs", "config")}
    if image.get("architecture") == ARCHITECTURE:
        image["architecture"] = "native"
    return {
        "result": "image",
        "image": image,
        "config": config.get("config", {}),
        "created_is_last_history": bool(history) and config.get("created") == history[-1].get("created"),
        **({"created": config.get("created")} if case.get("times") else {}),
        "history": [{k: v for k, v in h.items() if k != "created" or case.get("times")} for h in history if not base_history(h)],
        "layers": new_layers,
        "tree": {p: shown(p, f, case) for p, f in sorted(tree.items())
                 if not (p in base_tree and same(base_tree[p], f)) and not matches(p, case.get("ignore_paths", []))},
        "removed": topmost(p for p in base_tree if p not in tree),
    }


def lint_facts(found):
    """What lint says, as `Rule:line`; no member when it says nothing."""
    lint = sorted((f"{rule}:{line}" for rule, line in found), key=lambda one: (int(one.rpartition(":")[2]), one))
    return {"lint": lint} if lint else {}


def base_history(entry):
    return entry.get("created_by", "").startswith("corpus base layer")


def layer_facts(entries, lower, case):
    """What a layer does to the tree below it.

    `touched` entries change nothing but perhaps a time. Whiteouts are given by what they hide (`removed`), since one
    deletion has several spellings; those that hide nothing are `idle`.
    """
    changed, touched, idle = {}, [], []
    for path, facts in sorted(entries.items()):
        if matches(path, case.get("ignore_paths", [])):
            continue
        folder, name = posixpath.split(path)
        if name.startswith(".wh."):
            hidden = folder + "/" if name == ".wh..wh..opq" else posixpath.join(folder, name[4:])
            if not any(p == hidden or p.startswith(hidden.rstrip("/") + "/") for p in lower):
                idle.append(path)
        elif path in lower and same(lower[path], facts):
            touched.append(path)
        else:
            changed[path] = shown(path, facts, case)
    after = apply_layer(lower, entries)
    return {"changed": changed, "touched": touched, "removed": topmost(p for p in lower if p not in after), "idle": idle}


def settled_links(tree):
    """The tree with each group of hard links cut down to the names that still share a file."""
    settled = {}
    for path, facts in tree.items():
        if "links" in facts:
            members = [m for m in facts["links"] if tree.get(m, {}).get("links") == facts["links"]]
            facts = {k: v for k, v in facts.items() if k != "links"} | ({"links": members} if len(members) > 1 else {})
        settled[path] = facts
    return settled


def topmost(paths):
    kept = []
    for path in sorted(paths):
        if not any(path.startswith(k + "/") for k in kept):
            kept.append(path)
    return kept
