//! Datagrams to the guest's own services: a socket is connected by name and
//! never waited for.
//!
//! Trust: names are postern's own or those of who started it. These sockets are
//! only written to, never read. Callers: `heads`, `notify`.

use std::io;
use std::os::unix::net::UnixDatagram;

/// What became of a datagram.
#[derive(Debug)]
pub(crate) enum Sent {
    /// Its receiver has it, or will read it.
    Yes,
    /// Its receiver does not read fast enough; poll tells when there is room.
    NoRoom,
    /// There is no receiver, or none that takes it.
    Gone(io::Error),
}

/// A socket that waits for nothing.
///
/// # Errors
/// As socket(2).
pub(crate) fn socket() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sends one datagram to whom the socket is connected to.
pub(crate) fn send(socket: &UnixDatagram, datagram: &[u8]) -> Sent {
    loop {
        return match socket.send(datagram) {
            Ok(_) => Sent::Yes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::NoRoom,
            Err(error) => Sent::Gone(error),
        };
    }
}
