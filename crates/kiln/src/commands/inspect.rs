//! `inspect`: an image as Docker's document.

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use kiln_oci::{ChainId, Config};
use kiln_store::{Image, Leased, Store};
use serde_json::{Map, Value as Json, json};

use crate::arguments::image::{Inspect as Arguments, InspectImage, ObjectKind};
use crate::failure::{Failure, Kind};
use crate::format::inspect::Inspect;
use crate::session::{self, Files};
use crate::units::Clock;

/// Go's zero time, which Docker prints where it knows none.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// `inspect`.
pub(crate) fn run(root: Option<&Path>, arguments: &Arguments) -> Result<u8> {
    let missing = match arguments.kind {
        None => "object",
        Some(ObjectKind::Image) => "image",
        Some(ObjectKind::Container) => "container",
    };
    show(root, arguments.format.asked(), &arguments.names, missing)
}

/// `image inspect`.
pub(crate) fn image(root: Option<&Path>, arguments: &InspectImage) -> Result<u8> {
    show(root, arguments.format.asked(), &arguments.images, "image")
}

fn show(root: Option<&Path>, format: Option<&str>, names: &[String], missing: &str) -> Result<u8> {
    let inspect = Inspect::read(format).map_err(|failure| Failure::from(failure).status(64))?;
    let store = session::open(root, Files::Untouched)?;
    let unpacked = inspect.may_show("GraphDriver");
    let mut failures: Vec<anyhow::Error> = Vec::new();
    let mut documents = Vec::new();
    for name in names {
        // Nothing but images is kept at rest, so there is no container to be found.
        let found = if missing == "container" { None } else { store.find(name)? };
        match found {
            Some(id) => documents.push(document(&store, &store.image(id)?, unpacked)?),
            None => failures.push(Failure::new(Kind::Input, format!("No such {missing}: {name}")).into()),
        }
    }
    let inspected = inspect.render(&documents, "an image", &Clock::system());
    crate::output::output().write_all(inspected.text.as_bytes())?;
    failures.extend(inspected.failures.into_iter().map(|failure| Failure::from(failure).into()));
    Ok(super::report_all(&failures))
}

fn document(store: &Store, image: &Image, unpacked: bool) -> Result<Json> {
    let raw: Json = serde_json::from_slice(&image.config_bytes)?;
    let text = |name: &str| raw.get(name).and_then(Json::as_str).unwrap_or_default().to_owned();
    let config = &image.config;
    let comment = match text("comment") {
        own if !own.is_empty() => own,
        _ => config.history.last().map(|entry| entry.comment.clone()).unwrap_or_default(),
    };
    let names: Vec<String> = store.names_of(image.id)?.iter().map(kiln_oci::Reference::familiar).collect();
    let tagged = store.last_tag_time(image.id)?.and_then(super::images::time);
    let mut document = json!({
        "Id": image.id,
        "RepoTags": names,
        "RepoDigests": [],
        "Parent": "",
        "Comment": comment,
        "Created": config.created.as_deref().unwrap_or(NO_TIME),
        "DockerVersion": text("docker_version"),
        "Author": config.author.as_deref().unwrap_or_default(),
        "Config": container_config(&config.config, raw.get("config"))?,
        "Architecture": config.architecture,
    });
    let Json::Object(members) = &mut document else { return Ok(document) };
    if let Some(variant) = config.variant.as_deref().filter(|variant| !variant.is_empty()) {
        members.insert("Variant".to_owned(), variant.into());
    }
    let mut add = |name: &str, value: Json| members.insert(name.to_owned(), value);
    add("Os", config.os.as_str().into());
    add("Size", image.size.into());
    add("GraphDriver", graph_driver(store, image, unpacked)?);
    add("RootFS", json!({ "Type": config.rootfs.kind, "Layers": config.rootfs.diff_ids }));
    let tagged = tagged.map_or_else(|| NO_TIME.to_owned(), |time| time.to_string());
    add("Metadata", json!({ "LastTagTime": tagged }));
    Ok(document)
}

/// The members of Docker's container config, in its order: those without a value are there too, but for the ones that
/// Docker leaves out.
fn container_config(config: &Config, raw: Option<&Json>) -> Result<Json> {
    let raw = |name: &str| raw.and_then(|raw| raw.get(name)).cloned();
    let text = |name: &str| raw(name).filter(Json::is_string).unwrap_or_else(|| "".into());
    let flag = |name: &str| raw(name).filter(Json::is_boolean).unwrap_or(Json::Bool(false));
    let mut members = Map::new();
    let mut add = |name: &str, value: Json| members.insert(name.to_owned(), value);
    add("Hostname", text("Hostname"));
    add("Domainname", text("Domainname"));
    add("User", config.user.as_str().into());
    add("AttachStdin", flag("AttachStdin"));
    add("AttachStdout", flag("AttachStdout"));
    add("AttachStderr", flag("AttachStderr"));
    if let Some(ports) = config.exposed_ports.as_ref().filter(|ports| !ports.is_empty()) {
        add("ExposedPorts", serde_json::to_value(ports)?);
    }
    add("Tty", flag("Tty"));
    add("OpenStdin", flag("OpenStdin"));
    add("StdinOnce", flag("StdinOnce"));
    add("Env", serde_json::to_value(&config.env)?);
    add("Cmd", serde_json::to_value(&config.cmd)?);
    if let Some(healthcheck) = &config.healthcheck {
        add("Healthcheck", serde_json::to_value(healthcheck)?);
    }
    if config.args_escaped {
        add("ArgsEscaped", true.into());
    }
    add("Image", text("Image"));
    add("Volumes", serde_json::to_value(&config.volumes)?);
    add("WorkingDir", config.working_dir.as_str().into());
    add("Entrypoint", serde_json::to_value(&config.entrypoint)?);
    add("OnBuild", serde_json::to_value(&config.on_build)?);
    add("Labels", serde_json::to_value(&config.labels)?);
    if !config.stop_signal.is_empty() {
        add("StopSignal", config.stop_signal.as_str().into());
    }
    if let Some(timeout) = config.stop_timeout {
        add("StopTimeout", timeout.into());
    }
    if let Some(shell) = config.shell.as_ref().filter(|shell| !shell.is_empty()) {
        add("Shell", serde_json::to_value(shell)?);
    }
    Ok(Json::Object(members))
}

fn unpack(store: &Store, image: &Image) -> kiln_store::Result<()> {
    let lease = store.lease("inspect")?;
    lease.keep(Leased::Image(image.id))?;
    store.snapshots(&lease, &image.config.rootfs.diff_ids).map(drop)
}

/// Where the layers are unpacked; `Data` is `null` unless all of them are. Where layers are mounted in their tars instead,
/// they are unpacked for those who ask for their directories.
fn graph_driver(store: &Store, image: &Image, unpacked: bool) -> Result<Json> {
    let layers = &image.config.rootfs.diff_ids;
    if unpacked
        && store.mounts_tars()
        && let Err(error) = unpack(store, image)
    {
        // A full disk, perhaps: what else is known of the image can be shown all the same.
        crate::output::aside(&format!("kiln: the layers of {} are not unpacked: {error}\n", image.id));
    }
    let mut snapshots = Vec::with_capacity(layers.len());
    let mut parent = ChainId::SCRATCH;
    for layer in layers {
        let Some(snapshot) = store.find_snapshot(parent, *layer)? else { break };
        snapshots.push(snapshot);
        parent = parent.with(*layer);
    }
    let whole = snapshots.len() == layers.len();
    let data = match snapshots.split_last() {
        Some((top, lower)) if whole => {
            let path = |name: &str| Json::from(top.directory.join(name).to_string_lossy().into_owned());
            let lower: Vec<String> =
                lower.iter().rev().map(|snapshot| snapshot.diff.to_string_lossy().into_owned()).collect();
            let mut data = Map::new();
            if !lower.is_empty() {
                data.insert("LowerDir".to_owned(), lower.join(":").into());
            }
            for (member, name) in [("MergedDir", "merged"), ("UpperDir", "diff"), ("WorkDir", "work")] {
                data.insert(member.to_owned(), path(name));
            }
            Json::Object(data)
        }
        _ => Json::Null,
    };
    Ok(json!({ "Data": data, "Name": "overlay2" }))
}
