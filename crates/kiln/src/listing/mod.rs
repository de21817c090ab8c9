//! The rows of listings. Commands fill them from the store; everything about how they look is here.

pub(crate) mod disk_usage;
pub(crate) mod history;
pub(crate) mod images;
