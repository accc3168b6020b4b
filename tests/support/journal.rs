//! A journald of the test's own: its socket, what arrives there, and who sent it
//! by the kernel's word. Only where `/run` is the test's own.

use std::collections::BTreeMap;
use std::fs;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::socket::sockopt::PassCred;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt};
use serde_json::{Value, json};

/// Where journald listens.
pub(crate) const JOURNAL: &str = "/run/systemd/journal/socket";

/// A socket that all may write to, as journald's and syslog's are.
pub(crate) fn bind(path: &str) -> UnixDatagram {
    let _ = fs::remove_file(path);
    fs::create_dir_all(Path::new(path).parent().expect("a directory")).expect("a directory");
    let socket = UnixDatagram::bind(path).expect("a socket");
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("its mode");
    socket.set_nonblocking(true).expect("a flag");
    setsockopt(&socket, PassCred, &true).expect("SO_PASSCRED");
    socket
}

/// The next datagram and who sent it; `None` if there is none now.
pub(crate) fn heard(socket: &UnixDatagram) -> Option<(Vec<u8>, u32)> {
    let mut datagram = vec![0; 8192];
    let mut space = nix::cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(&mut datagram)];
    let heard = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).ok()?;
    let sender = heard.cmsgs().expect("whole").find_map(|one| match one {
        ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.uid()),
        _ => None,
    });
    let length = heard.bytes;
    datagram.truncate(length);
    Some((datagram, sender.expect("the kernel says who")))
}

/// What a datagram for journald says, by its native protocol.
pub(crate) fn fields(datagram: &[u8]) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let mut fields = BTreeMap::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').expect("a newline");
        let (line, behind) = (&rest[..end], &rest[end + 1..]);
        if let Some(equals) = line.iter().position(|byte| *byte == b'=') {
            fields.insert(text(&line[..equals]), text(&line[equals + 1..]));
            rest = behind;
        } else {
            let (length, behind) = behind.split_at(8);
            let length =
                usize::try_from(u64::from_le_bytes(length.try_into().expect("eight bytes"))).expect("a length");
            fields.insert(text(line), text(&behind[..length]));
            assert_eq!(behind[length], b'\n');
            rest = &behind[length + 1..];
        }
    }
    fields
}

/// All that is there, as `journalctl -o json` prints it.
pub(crate) fn exported(socket: &UnixDatagram) -> String {
    let mut lines = String::new();
    while let Some((datagram, sender)) = heard(socket) {
        let mut entry: Value = json!(fields(&datagram));
        entry["_TRANSPORT"] = "journal".into();
        entry["_UID"] = sender.to_string().into();
        lines.push_str(&entry.to_string());
        lines.push('\n');
    }
    lines
}
