//! A bounded list of paths, as a record holds it.
//!
//! Trust: the paths may be the host's; see [`Text`].

use super::text::{TEXT_MAX, Text};

/// Mountpoints, or other paths, bounded: [`Mounts::push`] keeps the first that
/// fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    kept: Vec<Text>,
    bytes: usize,
    omitted: u64,
}

impl Mounts {
    /// Most bytes that the kept mountpoints take together.
    pub const BYTES_MAX: usize = 2 * TEXT_MAX;

    /// Adds a mountpoint, or counts it where there is no room.
    pub fn push(&mut self, mountpoint: Text) {
        // The quotes and the comma of a list count too, for empty names.
        let bytes = mountpoint.bytes().len() + 3;
        if self.omitted > 0 || self.bytes + bytes > Self::BYTES_MAX {
            self.omitted += 1;
        } else {
            self.bytes += bytes;
            self.kept.push(mountpoint);
        }
    }

    /// The mountpoints that fitted.
    #[must_use]
    pub fn kept(&self) -> &[Text] {
        &self.kept
    }

    /// How many did not fit.
    #[must_use]
    pub const fn omitted(&self) -> u64 {
        self.omitted
    }

    /// Whether none was ever added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.omitted == 0
    }
}

impl<T: Into<Text>> FromIterator<T> for Mounts {
    fn from_iter<I: IntoIterator<Item = T>>(mountpoints: I) -> Self {
        let mut mounts = Self::default();
        mountpoints.into_iter().for_each(|mountpoint| mounts.push(mountpoint.into()));
        mounts
    }
}
