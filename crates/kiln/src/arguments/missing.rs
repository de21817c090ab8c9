//! What Docker has and kiln has not: what to do instead, for those whose fingers know it.

const REGISTRY: &str = "kiln speaks to no registry yet: `skopeo copy docker://NAME docker-archive:FILE` and `kiln load -i FILE` bring an image, `kiln save` hands one on";
const CONTAINERS: &str =
    "containers live as long as their `kiln run`; there is none to list, enter or remove";
const PRUNE: &str = "`kiln system prune` removes what nothing uses, `kiln image prune` images alone";
const BUILD: &str =
    "`kiln build` builds, and its cache trims itself; `kiln system prune` removes what nothing uses";
const COPY: &str = "`kiln image cat` prints a file of an image, `kiln image unpack` writes all of them; `kiln run -v` mounts a directory";
const OUTPUT: &str = "the image stays in the store; `kiln save` writes it to an archive, `kiln image unpack` its files to a directory";
const SECRETS: &str =
    "not built yet: `--lend` lends a CA bundle and package settings without a trace in the image";
const CACHE: &str = "the cache is the store's own; it is neither read from elsewhere nor written there";

/// What to do instead of a command.
pub(super) fn command(name: &str) -> Option<&'static str> {
    Some(match name {
        "pull" | "push" | "login" | "logout" | "search" | "manifest" => REGISTRY,
        "ps" | "exec" | "stop" | "kill" | "logs" | "rm" | "attach" | "start" | "create" | "container"
        | "top" | "pause" | "unpause" | "restart" | "rename" | "wait" | "stats" | "port" | "update" => {
            CONTAINERS
        }
        "prune" => PRUNE,
        "builder" | "buildx" => BUILD,
        "diff" | "commit" => {
            "a container's changes go with it; `kiln image diff` compares images, `kiln build` makes them"
        }
        "cp" => COPY,
        "export" => "`kiln image unpack` writes the files of an image, `kiln save` the image",
        "volume" => "kiln has no named volumes; `kiln run -v` mounts directories of the machine",
        "network" => "kiln has no networks of its own; steps and containers use the machine's",
        _ => return None,
    })
}

/// What to do instead of a flag of a command.
pub(super) fn flag(path: &str, flag: &str) -> Option<&'static str> {
    let (name, _) = flag.split_once('=').unwrap_or((flag, ""));
    Some(match (path.rsplit(' ').next()?, name) {
        ("build", "--output" | "-o" | "--load") => OUTPUT,
        ("build" | "run", "--push" | "--pull") => REGISTRY,
        ("build", "--secret" | "--ssh") => SECRETS,
        ("build", "--cache-from" | "--cache-to") => CACHE,
        ("build" | "run", "--platform") => "kiln builds and runs for this machine's platform alone",
        ("run", "-d" | "--detach" | "--name" | "--restart") => CONTAINERS,
        ("build", "--rm" | "--force-rm") => "leave it out: a build leaves no container behind",
        ("run", "--mount") => "`-v SOURCE:TARGET[:ro]` mounts a directory or file of the machine",
        ("run", "--privileged" | "--cap-add") => {
            "a container has Docker's usual capabilities and gets no more"
        }
        ("run", "-p" | "--publish" | "-P" | "--network" | "--net") => {
            "a container sees the machine's network: its ports are the machine's"
        }
        _ => return None,
    })
}
