//! RUN: its command, and what it mounts.

use kiln_dockerfile::{Instruction, Mount, MountType, Sharing, Span, clean_path, history};
use kiln_graph::VertexId;

use super::{LoweredStep, Lowering, instruction_error};
use crate::error::{Error, Result};
use crate::operation::{
    Access, CacheMount, CacheOwner, CacheSharing, MountSource, Operation, RunMount, RunMountKind,
    RunOperation, SecurityMode,
};
use crate::request::{Entitlement, NetworkMode};
use crate::stage::{StageState, absolute};

impl Lowering<'_> {
    pub(super) fn run(
        &mut self,
        state: &StageState,
        stage: usize,
        run: &kiln_dockerfile::Run,
        mounts: &[Mount],
        instruction: &Instruction,
    ) -> Result<LoweredStep> {
        let span = instruction.span;
        if !run.devices.is_empty() {
            return Err(Error::Unsupported("RUN --device".to_owned()));
        }
        let network = self.network(run)?;
        let security = match run.security {
            kiln_dockerfile::Security::Sandbox => SecurityMode::Sandbox,
            kiln_dockerfile::Security::Insecure => {
                self.need(Entitlement::SecurityInsecure, "RUN --security=insecure")?;
                SecurityMode::Insecure
            }
        };
        let mut inputs = Vec::new();
        let mut lowered = Vec::new();
        for mount in mounts {
            if is_absent_secret(mount)? {
                continue;
            }
            let source = self.mount_source(stage, mount, span, &mut inputs)?;
            lowered.push(run_mount(state, mount, source, span)?);
        }
        let program = run.program(&state.shell());
        let text = history::run(&program.arguments, &state.build_args, &state.environment);
        let operation = RunOperation {
            arguments: program.arguments,
            environment: state.environment.settings(),
            directory: state.directory().to_owned(),
            user: state.image.config.user.clone(),
            network,
            security,
            mounts: lowered,
            script: program.script,
            epoch: self.epoch,
        };
        Ok((Operation::Run(Box::new(operation)), inputs, text))
    }

    fn network(&self, run: &kiln_dockerfile::Run) -> Result<NetworkMode> {
        let network = match run.network {
            kiln_dockerfile::Network::Default => self.request.network,
            kiln_dockerfile::Network::None => NetworkMode::None,
            kiln_dockerfile::Network::Host => NetworkMode::Host,
        };
        if network == NetworkMode::Host {
            self.need(Entitlement::NetworkHost, "the host's network")?;
        }
        Ok(network)
    }

    fn need(&self, entitlement: Entitlement, what: &str) -> Result<()> {
        if self.request.allowed.contains(&entitlement) {
            return Ok(());
        }
        Err(Error::NotAllowed { what: what.to_owned(), allowance: entitlement.name() })
    }

    fn mount_source(
        &mut self,
        stage: usize,
        mount: &Mount,
        span: Span,
        inputs: &mut Vec<(String, VertexId)>,
    ) -> Result<MountSource> {
        match (&mount.from, mount.mount_type) {
            (None, MountType::Bind) => Ok(MountSource::Context),
            (None, _) => Ok(MountSource::Empty),
            (Some(from), _) => {
                let source = self.names.mount_source(from);
                let vertex = self.source(stage, source, span)?;
                inputs.push((format!("mount {}", mount.target), vertex));
                Ok(MountSource::Input(inputs.len()))
            }
        }
    }
}

fn run_mount(state: &StageState, mount: &Mount, source: MountSource, span: Span) -> Result<RunMount> {
    let target = absolute(state.directory(), &mount.target);
    if target == "/" {
        let reason =
            if mount.target.is_empty() { "there is no target=PATH" } else { "nothing covers the root" };
        let message = format!("invalid mount target {:?}: {reason}", mount.target);
        return Err(instruction_error(message, span));
    }
    let access = if mount.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let path = absolute("/", &mount.source);
    let kind = match mount.mount_type {
        MountType::Bind => RunMountKind::Bind { source, path, access },
        MountType::Tmpfs => RunMountKind::Tmpfs { size: mount.size_limit.unsigned_abs() },
        MountType::Cache => RunMountKind::Cache(CacheMount {
            // As in BuildKit, a relative target stays one in the id.
            id: mount.id.clone().filter(|id| !id.is_empty()).unwrap_or_else(|| clean_path(&mount.target)),
            sharing: match mount.sharing {
                None | Some(Sharing::Shared) => CacheSharing::Shared,
                Some(Sharing::Private) => CacheSharing::Private,
                Some(Sharing::Locked) => CacheSharing::Locked,
            },
            source,
            // As in BuildKit, they count where the whole is mounted alone.
            owner: (path == "/").then(|| cache_owner(mount)).flatten(),
            path,
            access,
        }),
        MountType::Secret | MountType::Ssh => {
            return Err(Error::Unsupported(format!("RUN --mount=type={}", mount.mount_type.name())));
        }
    };
    Ok(RunMount { target, kind })
}

fn cache_owner(mount: &Mount) -> Option<CacheOwner> {
    if mount.uid.is_none() && mount.gid.is_none() && mount.mode.is_none() {
        return None;
    }
    let CacheOwner { uid, gid, mode } = CacheOwner::ROOT;
    Some(CacheOwner {
        uid: mount.uid.unwrap_or(uid),
        gid: mount.gid.unwrap_or(gid),
        // As in BuildKit, permissions alone: no sticky bit.
        mode: mount.mode.unwrap_or(mode) & 0o777,
    })
}

/// There is no way yet to give secrets or an agent to a build: those that are not required are simply not there.
fn is_absent_secret(mount: &Mount) -> Result<bool> {
    if !matches!(mount.mount_type, MountType::Secret | MountType::Ssh) {
        return Ok(false);
    }
    if mount.required {
        let id = mount.id.as_deref().unwrap_or("default");
        let kind = mount.mount_type.name();
        return Err(Error::Unsupported(format!(
            "giving {kind} {id:?} to a build, which this step requires,"
        )));
    }
    Ok(true)
}
