//! Stages by name and number, as FROM, COPY and --target find them.

use crate::error::Error;
use crate::instruction::{Dockerfile, Stage};
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

impl Dockerfile {
    /// The earlier stage that a FROM builds on, given its expanded base; `None` if it is an image.
    /// The nearest of equal names counts; names are compared with regard to case, and stages'
    /// are lower case.
    #[must_use]
    pub fn base_stage(&self, stage: usize, base: &str) -> Option<usize> {
        let earlier = self.stages.iter().take(stage).rev();
        earlier
            .filter(|other| other.name.as_ref().is_some_and(|name| name.text == base))
            .map(|other| other.index)
            .next()
    }

    /// What `COPY --from=<reference>` reads: a number is a stage's index, a name without regard to
    /// case a stage's name, anything else an image.
    ///
    /// # Errors
    /// [`Error::Stage`] for a number without a stage.
    pub fn copy_source(&self, reference: &str) -> Result<CopySource, Error> {
        match reference.parse::<i64>() {
            Ok(number) => match usize::try_from(number).ok().filter(|index| *index < self.stages.len()) {
                Some(index) => Ok(CopySource::Stage(index)),
                None => Err(Error::Stage { message: format!("invalid stage index {reference}") }),
            },
            Err(_) => Ok(self.mount_source(reference)),
        }
    }

    /// What a mount's `from=<reference>` reads: as [`Dockerfile::copy_source`], but numbers are
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
        let lower = name.to_lowercase();
        let named = |stage: &&Stage| stage.name.as_ref().is_some_and(|name| name.text == lower);
        self.stages.iter().rev().find(named).map(|stage| stage.index)
    }

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
        self.stage_named(target).or_else(number).ok_or_else(|| {
            let names = self.stages.iter().filter_map(|stage| Some(stage.name.as_ref()?.text.as_str()));
            let hint = suggest::hint(target, names).map(|hint| format!(" ({hint})")).unwrap_or_default();
            Error::Stage { message: format!("target stage {target:?} could not be found{hint}") }
        })
    }
}
