//! Images as archives, made without any engine: a root's tar, an archive that is OCI layout and docker archive at
//! once, and the layout as a directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::machine;

/// The time of everything that is made, in seconds.
pub(crate) const EPOCH: u64 = 1_767_225_600;

/// An image in the forms that engines take.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Its name, without tag.
    pub(crate) name: String,
    /// Its one layer.
    pub(crate) rootfs: PathBuf,
    /// The same, compressed.
    pub(crate) rootfs_gzip: PathBuf,
    pub(crate) rootfs_zstd: PathBuf,
    /// Archive of docker's and of OCI's form.
    pub(crate) archive: PathBuf,
    /// OCI layout as a directory, and the digest of its manifest.
    pub(crate) layout: PathBuf,
    pub(crate) manifest: String,
    /// The same with its layer compressed by gzip.
    pub(crate) layout_gzip: PathBuf,
    pub(crate) manifest_gzip: String,
    /// The archive with its layer compressed by gzip, and by zstd.
    pub(crate) gzip: PathBuf,
    pub(crate) zstd: PathBuf,
}

impl Image {
    /// The same image as it comes out of most registries: its layer compressed.
    pub(crate) fn compressed(&self) -> Self {
        Self {
            rootfs: self.rootfs_gzip.clone(),
            layout: self.layout_gzip.clone(),
            manifest: self.manifest_gzip.clone(),
            archive: self.gzip.clone(),
            ..self.clone()
        }
    }
}

/// The name of a root's tar in the directory of an image's forms.
pub(crate) const ROOTFS: &str = "rootfs.tar";

/// The machine's busybox, which must be static, with a link for each of its programs.
pub(crate) fn busybox(directory: &Path) -> Result<Image> {
    let rootfs = directory.join(ROOTFS);
    if !rootfs.is_file() {
        std::fs::create_dir_all(directory)?;
        let program = machine::find("busybox")
            .context("busybox is not on the PATH: install Debian's busybox-static, the base of all builds")?;
        let names = machine::output(Command::new(&program).arg("--list"))?;
        let mut tar = Tar::new();
        for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
            tar.add(&Member::directory(&format!("{name}/"), if name == "tmp" { 0o1777 } else { 0o755 }));
        }
        tar.add(&Member::file("bin/busybox", 0o755, &std::fs::read(&program)?));
        for name in names.lines().filter(|name| *name != "busybox") {
            tar.add(&Member::link(&format!("bin/{name}"), "busybox"));
        }
        tar.add(&Member::file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n"));
        tar.add(&Member::file("etc/group", 0o644, b"root:x:0:\n"));
        std::fs::write(&rootfs, tar.finish())?;
    }
    image("busybox", directory)
}

/// The forms of `<directory>/rootfs.tar`.
pub(crate) fn image(name: &str, directory: &Path) -> Result<Image> {
    let file = |name: &str| directory.join(name);
    let (rootfs, archive) = (file(ROOTFS), file("image.tar"));
    let (layout, layout_gzip) = (file("layout"), file("layout-gzip"));
    let (gzip, zstd) = (file("image-gzip.tar"), file("image-zstd.tar"));
    let (rootfs_gzip, rootfs_zstd) = (file("rootfs.tar.gz"), file("rootfs.tar.zst"));
    for (path, program, level) in [(&rootfs_gzip, "gzip", "-6n"), (&rootfs_zstd, "zstd", "-3")] {
        if !path.is_file() {
            let partial = path.with_extension("partial");
            let mut command = Command::new(program);
            let status = command.args([level, "-c"]).arg(&rootfs).stdout(File::create(&partial)?).status()?;
            if !status.success() {
                bail!("{program} ended with {status}");
            }
            std::fs::rename(partial, path)?;
        }
    }
    if !zstd.is_file() || !layout_gzip.is_dir() {
        let plain = std::fs::read(&rootfs)?;
        let diff_id = digest(&plain);
        let forms = [
            (&archive, "tar", plain, Some(&layout)),
            (&gzip, "tar+gzip", std::fs::read(&rootfs_gzip)?, Some(&layout_gzip)),
            (&zstd, "tar+zstd", std::fs::read(&rootfs_zstd)?, None),
        ];
        for (path, media, layer, layout) in forms {
            let files = layout_files(name, media, &layer, &diff_id)?;
            if let Some(layout) = layout {
                write_layout(layout, &files)?;
            }
            let mut tar = Tar::new();
            for (inside, bytes) in &files {
                tar.add(&Member::file(inside, 0o644, bytes));
            }
            let partial = path.with_extension("partial");
            std::fs::write(&partial, tar.finish())?;
            std::fs::rename(partial, path)?;
        }
    }
    Ok(Image {
        name: name.to_owned(),
        rootfs,
        rootfs_gzip,
        rootfs_zstd,
        archive,
        manifest: manifest_of(&layout)?,
        layout,
        manifest_gzip: manifest_of(&layout_gzip)?,
        layout_gzip,
        gzip,
        zstd,
    })
}

/// Writes a layout's files into a directory: under another name first, so that half a one is never used.
fn write_layout(layout: &Path, files: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let partial = layout.with_extension("partial");
    for place in [&partial, layout] {
        let _ = std::fs::remove_dir_all(place);
    }
    for (inside, bytes) in files {
        let path = partial.join(inside);
        std::fs::create_dir_all(path.parent().unwrap_or(&partial))?;
        std::fs::write(path, bytes)?;
    }
    Ok(std::fs::rename(partial, layout)?)
}

/// The digest of the one manifest of a layout.
fn manifest_of(layout: &Path) -> Result<String> {
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
    Ok(index["manifests"][0]["digest"].as_str().unwrap_or_default().to_owned())
}

/// The files of an OCI layout with one image, and docker's manifest.json.
fn layout_files(name: &str, media: &str, layer: &[u8], diff_id: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let config = serde_json::to_vec(&config(name, &[diff_id.to_owned()]))?;
    let descriptor =
        |media: &str, bytes: &[u8]| json!({"mediaType": media, "digest": digest(bytes), "size": bytes.len()});
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor(&format!("application/vnd.oci.image.layer.v1.{media}"), layer)],
    }))?;
    let mut pointer = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    pointer["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/{name}:latest"),
        "org.opencontainers.image.ref.name": "latest",
    });
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest(bytes).trim_start_matches("sha256:"));
    let docker =
        json!([{"Config": blob(&config), "RepoTags": [format!("{name}:latest")], "Layers": [blob(layer)]}]);
    Ok(BTreeMap::from([
        (blob(&config), config),
        (blob(&manifest), manifest),
        (blob(layer), layer.to_vec()),
        ("index.json".to_owned(), serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [pointer]}))?),
        ("manifest.json".to_owned(), serde_json::to_vec(&docker)?),
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
    ]))
}

fn config(label: &str, diff_ids: &[String]) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let history: Vec<Value> =
        diff_ids.iter().map(|_| json!({"created": "2026-01-01T00:00:00Z", "created_by": "bench"})).collect();
    json!({
        "created": "2026-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Labels": {"bench": label}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    })
}

/// An archive of `count` images called `many:<number>`, each with one small layer.
pub(crate) fn many_images(count: usize, path: &Path) -> Result<()> {
    let mut archive = DockerArchive::new();
    for number in 0..count {
        let layer = small_layer("number", number);
        archive.image(&format!("many:{number}"), &number.to_string(), &[layer])?;
    }
    archive.write(path)
}

/// An archive of one image called `layers`: the root's tar with small layers above it, `count` layers in all.
pub(crate) fn many_layers(root: &Path, count: usize, path: &Path) -> Result<()> {
    let mut layers = vec![std::fs::read(root)?];
    layers.extend((1..count).map(|number| small_layer(&format!("number-{number}"), number)));
    let mut archive = DockerArchive::new();
    archive.image("layers:latest", "layers", &layers)?;
    archive.write(path)
}

fn small_layer(name: &str, number: usize) -> Vec<u8> {
    let mut layer = Tar::new();
    layer.add(&Member::file(name, 0o644, format!("{number}\n").as_bytes()));
    layer.finish()
}

/// What `docker save` wrote before it wrote OCI's layout.
struct DockerArchive {
    tar: Tar,
    manifest: Vec<Value>,
}

impl DockerArchive {
    fn new() -> Self {
        Self { tar: Tar::new(), manifest: Vec::new() }
    }

    fn image(&mut self, name: &str, label: &str, layers: &[Vec<u8>]) -> Result<()> {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = serde_json::to_vec(&config(label, &diff_ids))?;
        let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
        let config_name = format!("{}.json", hex(&digest(&config)));
        self.tar.add(&Member::file(&config_name, 0o644, &config));
        let mut names = Vec::new();
        for (layer, diff_id) in layers.iter().zip(&diff_ids) {
            names.push(format!("{}/layer.tar", hex(diff_id)));
            self.tar.add(&Member::file(&names[names.len() - 1], 0o644, layer));
        }
        self.manifest.push(json!({"Config": config_name, "RepoTags": [name], "Layers": names}));
        Ok(())
    }

    fn write(mut self, path: &Path) -> Result<()> {
        let manifest = serde_json::to_vec(&self.manifest)?;
        self.tar.add(&Member::file("manifest.json", 0o644, &manifest));
        Ok(std::fs::write(path, self.tar.finish())?)
    }
}

/// A directory as a tar, its entries in the order of their names, owned by root.
pub(crate) fn tar_directory(directory: &Path, path: &Path) -> Result<()> {
    let mut tar = Tar::new();
    let mut pending = vec![(directory.to_path_buf(), String::new())];
    while let Some((place, inside)) = pending.pop() {
        let mut entries = std::fs::read_dir(&place)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = format!("{inside}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                tar.add(&Member::directory(&format!("{name}/"), 0o755));
                pending.push((entry.path(), format!("{name}/")));
            } else {
                let mut bytes = Vec::new();
                File::open(entry.path())?.read_to_end(&mut bytes)?;
                tar.add(&Member::file(&name, 0o644, &bytes));
            }
        }
    }
    Ok(std::fs::write(path, tar.finish())?)
}

/// `sha256:` and 64 digits.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// An entry of a tar.
struct Member<'a> {
    name: &'a str,
    mode: u32,
    kind: u8,
    link: &'a str,
    bytes: &'a [u8],
}

impl<'a> Member<'a> {
    fn file(name: &'a str, mode: u32, bytes: &'a [u8]) -> Self {
        Self { name, mode, kind: b'0', link: "", bytes }
    }

    fn directory(name: &'a str, mode: u32) -> Self {
        Self { name, mode, kind: b'5', link: "", bytes: &[] }
    }

    fn link(name: &'a str, link: &'a str) -> Self {
        Self { name, mode: 0o777, kind: b'2', link, bytes: &[] }
    }
}

/// A ustar writer for names of at most 100 bytes; not kiln's own, which is being measured.
struct Tar(Vec<u8>);

impl Tar {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn add(&mut self, member: &Member<'_>) {
        let mut header = [0; 512];
        let mut text =
            |at: usize, value: &str| header[at..at + value.len()].copy_from_slice(value.as_bytes());
        assert!(member.name.len() <= 100, "{}", member.name);
        text(0, member.name);
        text(100, &format!("{:07o}", member.mode));
        text(108, "0000000");
        text(116, "0000000");
        text(124, &format!("{:011o}", member.bytes.len()));
        text(136, &format!("{EPOCH:011o}"));
        text(148, "        ");
        text(157, member.link);
        text(257, "ustar");
        text(263, "00");
        header[156] = member.kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        // A Vec takes whatever is written.
        let _ = self.0.write_all(member.bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gnu_tar_reads_what_is_made() {
        let path = std::env::temp_dir().join(format!("bench-tar-{}.tar", std::process::id()));
        let mut tar = Tar::new();
        tar.add(&Member::directory("d/", 0o755));
        tar.add(&Member::file("d/f", 0o640, b"hello"));
        tar.add(&Member::link("l", "d/f"));
        std::fs::write(&path, tar.finish()).unwrap();
        let listed = machine::output(Command::new("tar").arg("-tvf").arg(&path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<&str> = listed.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("-rw-r----- 0/0") && lines[1].contains(" 5 "), "{listed}");
        assert!(lines[2].ends_with("l -> d/f"), "{listed}");
    }

    #[test]
    fn digests_are_sha256() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
