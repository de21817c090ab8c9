//! Stages by name and number, as FROM, COPY and --target find them.

use std::collections::HashMap;

use crate::error::Error;
use crate::instruction::Dockerfile;
use crate::suggest;

/// Where COPY --from or a mount's `from=` points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// The stage of this index. It may stand behind the asking one, which is an error to report when
    /// that stage is wanted.
    Stage(usize),
    /// No stage: an image's reference (or a named context).
    Image(String),
}

/// The stages of a Dockerfile by their names, however many there are.
#[derive(Debug)]
pub struct StageNames<'d> {
    /// The indexes of those that have a name, in order.
    named: HashMap<&'d str, Vec<usize>>,
    stages: usize,
}

impl<'d> StageNames<'d> {
    /// Those of `dockerfile`.
    #[must_use]
    pub fn of(dockerfile: &'d Dockerfile) -> Self {
        let mut named: HashMap<&str, Vec<usize>> = HashMap::new();
        for stage in &dockerfile.stages {
            if let Some(name) = &stage.name {
                named.entry(&name.text).or_default().push(stage.index);
            }
        }
        Self { named, stages: dockerfile.stages.len() }
    }

    /// The earlier stage that a FROM builds on, given its expanded base; `None` if it is an image.
    /// The nearest of equal names counts; names are compared with regard to case, and stages'
    /// are lower case.
    #[must_use]
    pub fn base_stage(&self, stage: usize, base: &str) -> Option<usize> {
        let named = self.named.get(base)?;
        let earlier = named.partition_point(|index| *index < stage);
        named[..earlier].last().copied()
    }

    /// What `COPY --from=<reference>` reads: a number is a stage's index, a name without regard to
    /// case a stage's name, anything else an image.
    ///
    /// # Errors
    /// [`Error::Stage`] for a number without a stage.
    pub fn copy_source(&self, reference: &str) -> Result<CopySource, Error> {
        match reference.parse::<i64>() {
            Ok(number) => match usize::try_from(number).ok().filter(|index| *index < self.stages) {
                Some(index) => Ok(CopySource::Stage(index)),
                None => Err(Error::Stage { message: format!("invalid stage index {reference}") }),
            },
            Err(_) => Ok(self.mount_source(reference)),
        }
    }

    /// What a mount's `from=<reference>` reads: as [`StageNames::copy_source`], but numbers are
    /// references too.
    #[must_use]
    pub fn mount_source(&self, reference: &str) -> CopySource {
        match self.stage_named(reference) {
            Some(index) => CopySource::Stage(index),
            None => CopySource::Image(reference.to_owned()),
        }
    }

    /// The last stage of this name, without regard to case.
    #[must_use]
    pub fn stage_named(&self, name: &str) -> Option<usize> {
        self.named.get(name.to_lowercase().as_str())?.last().copied()
    }
}

impl Dockerfile {
    /// The stage that `--target` wants: by name, else by number; the last one without `--target`.
    ///
    /// # Errors
    /// [`Error::Stage`] if there is none, with a near name.
    pub fn target_stage(&self, target: Option<&str>) -> Result<usize, Error> {
        let Some(target) = target.filter(|target| !target.is_empty()) else {
            let none = || Error::Stage { message: "dockerfile contains no stages to build".to_owned() };
            return self.stages.len().checked_sub(1).ok_or_else(none);
        };
        let number = || target.parse::<usize>().ok().filter(|index| *index < self.stages.len());
        StageNames::of(self).stage_named(target).or_else(number).ok_or_else(|| {
            let near = self.near_stage(target);
            let hint = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
            Error::Stage { message: format!("target stage {target:?} could not be found{hint}") }
        })
    }

    /// The stage whose name is nearest to one that is none, if one is near.
    #[must_use]
    pub fn near_stage(&self, name: &str) -> Option<String> {
        suggest::near(name, self.stages.iter().filter_map(|stage| Some(stage.name.as_ref()?.text.as_str())))
    }
}
