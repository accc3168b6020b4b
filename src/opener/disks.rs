//! Block devices: where each is, what it is made of, and by what it is reached. Of all,
//! or of those alone on which filesystems lie that are told.
//!
//! Trust: names and links are the kernel's; what udev wrote is only copied.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, readlinkat};
use postern_core::catalogue::facts::{BLOCK_DEVICES, DEVICES, UDEV};
use postern_core::ipc::bundle::{Kind, names_of};
use postern_core::mountinfo::Device;
use postern_core::place::Place;

use crate::gather::{Gatherer, beneath_name};
use crate::mounts::Disk;

/// What the kernel says of the size of a device without one: a loop device without a
/// file, a drive without a disk.
const NO_SIZE: &[u8] = b"0\n";

impl Gatherer {
    /// The devices on which filesystems lie, and all that each of these is made of.
    pub(crate) fn chains(&mut self, disks: Vec<Disk>) -> Result<(), Errno> {
        self.add(Kind::Directory, BLOCK_DEVICES.as_bytes(), b"")?;
        let mut seen: BTreeSet<OsString> = BTreeSet::new();
        let mut left: Vec<(OsString, Option<Device>)> =
            disks.into_iter().map(|disk| (disk.link, Some(disk.number))).collect();
        // Each once, however the kernel's links lead to it.
        while let Some((link, number)) = left.pop() {
            let Some(place) = Place::of_link(link.as_bytes()).filter(|_| !seen.contains(&link)) else { continue };
            let slaves = self.device(place, &link, number)?;
            left.extend(names_of(&slaves).filter_map(|slave| Some((link_of(slave)?, None))));
            seen.insert(link);
        }
        Ok(())
    }

    fn device(&mut self, place: Place<'_>, link: &OsStr, number: Option<Device>) -> Result<Vec<u8>, Errno> {
        self.add(Kind::Entry, place.name().as_bytes(), b"")?;
        self.add(Kind::Link, b"", link.as_bytes())?;
        let mut path = Vec::new();
        beneath(&mut path, place, "slaves");
        if place.is_virtual() {
            return self.names(AT_FDCWD, &path, b"slaves");
        }
        beneath(&mut path, place, "dev");
        let number = number.or_else(|| Device::parse(self.read(AT_FDCWD, &path)?.trim_ascii_end()));
        self.seat(place, number)?;
        Ok(Vec::new())
    }

    /// Every device that has a size, and its partitions.
    pub(crate) fn disks(&mut self) -> Result<(), Errno> {
        let Some((open, names)) = self.directory(BLOCK_DEVICES)? else { return Ok(()) };
        let all: BTreeSet<&OsStr> = names_of(&names).collect();
        let mut told: BTreeSet<&OsStr> = BTreeSet::new();
        let mut parts = Vec::new();
        for name in names_of(&names) {
            let Ok(link) = readlinkat(open.as_fd(), name) else { continue };
            let Some(place) = Place::of_link(link.as_bytes()) else { continue };
            match place.parent_name().and_then(|parent| all.get(OsStr::new(parent))) {
                Some(disk) => parts.push((*disk, name, link)),
                None if self.disk(open.as_fd(), name.as_bytes(), &link, place)? => drop(told.insert(name)),
                None => {}
            }
        }
        for (_, name, link) in parts.iter().filter(|(disk, ..)| told.contains(disk)) {
            self.add(Kind::Entry, name.as_bytes(), b"")?;
            self.add(Kind::Link, b"", link.as_bytes())?;
        }
        Ok(())
    }

    /// Adds a disk; whether it is one.
    fn disk(&mut self, at: BorrowedFd<'_>, name: &[u8], link: &OsStr, place: Place<'_>) -> Result<bool, Errno> {
        let mut path = Vec::new();
        beneath_name(&mut path, name, "size");
        if self.read(at, &path).is_none_or(|size| size == NO_SIZE) {
            return Ok(false);
        }
        beneath_name(&mut path, name, "dev");
        // Without a number it is one of the ways to a disk, and none.
        let number = self.read(at, &path).and_then(|number| Device::parse(number.trim_ascii_end()));
        if number.is_none() {
            return Ok(false);
        }
        self.add(Kind::Entry, name, b"")?;
        self.add(Kind::Link, b"", link.as_bytes())?;
        beneath_name(&mut path, name, "slaves");
        self.names(at, &path, b"slaves")?;
        if place.is_virtual() {
            beneath_name(&mut path, name, "dm/name");
            self.file(at, &path, b"dm/name")?;
        } else {
            self.seat(place, number)?;
        }
        Ok(true)
    }

    /// The driver of the controller by which a disk is reached, which other ports that
    /// has, and what udev has noted of the disk.
    fn seat(&mut self, place: Place<'_>, number: Option<Device>) -> Result<(), Errno> {
        if let Some((_, controller)) = place.controller() {
            let controller = format!("{DEVICES}/{controller}");
            let driver = format!("{controller}/driver");
            self.link(AT_FDCWD, driver.as_bytes(), driver.as_bytes())?;
            if place.ata_port().is_some() {
                self.names(AT_FDCWD, controller.as_bytes(), controller.as_bytes())?;
            }
        }
        let Some(number) = number else { return Ok(()) };
        let noted = format!("{UDEV}/b{number}");
        self.file(AT_FDCWD, noted.as_bytes(), noted.as_bytes())
    }
}

/// Puts the path of something of a device together.
fn beneath(path: &mut Vec<u8>, place: Place<'_>, rest: &str) {
    beneath_name(path, DEVICES.as_bytes(), place.path());
    path.push(b'/');
    path.extend_from_slice(rest.as_bytes());
}

/// Where the kernel links to by a device's name.
fn link_of(name: &OsStr) -> Option<OsString> {
    let mut path = Vec::new();
    beneath_name(&mut path, BLOCK_DEVICES.as_bytes(), name.to_str()?);
    readlinkat(AT_FDCWD, OsStr::from_bytes(&path)).ok()
}
