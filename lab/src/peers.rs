//! Servers that each do one thing, as closures over an accepted stream; and the abrupt ends of a client.
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net;
use socket2::SockRef;

use crate::host::Host;
use crate::wait::becomes;

/// A server that handles every connection in its own thread. Dropping it closes the listener.
#[derive(Debug)]
pub struct Server {
    listener: Arc<TcpListener>,
    accepting: Option<JoinHandle<()>>,
    /// The address that it listens on.
    pub address: SocketAddr,
}

impl Server {
    /// Listens on an address of `host` and calls `serve` for every connection. An error ends that connection only.
    pub fn start<F>(host: &Host, address: SocketAddr, serve: F) -> Self
    where
        F: Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    {
        let listener = Arc::new(host.listen(address));
        let address = listener.local_addr().unwrap_or(address);
        let (incoming, serve) = (Arc::clone(&listener), Arc::new(serve));
        let accepting = std::thread::spawn(move || {
            while let Ok((stream, peer)) = incoming.accept() {
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || {
                    if let Err(err) = serve(stream) {
                        eprintln!("the server's connection from {peer}: {err}");
                    }
                });
            }
        });
        Self { listener, accepting: Some(accepting), address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // accept() returns once the listener is shut down. The last owner closes the socket.
        let _ = net::shutdown(&*self.listener, net::Shutdown::Both);
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

/// Echoes everything until the client closes its direction.
pub fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}

/// Sends the peer address that it sees and closes its direction; then reads to the end.
pub fn whoami(mut stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    stream.write_all(peer.to_string().as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

/// Sends first, as SSH and SMTP servers do; then reads to the end.
pub fn banner(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(b"220 speak\r\n")?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

/// Reads nothing, and keeps the connection open for an hour.
pub fn deaf(stream: TcpStream) -> io::Result<()> {
    std::thread::sleep(Duration::from_secs(3600));
    drop(stream);
    Ok(())
}

/// Sends until the connection fails.
pub fn flood(mut stream: TcpStream) -> io::Result<()> {
    let chunk = vec![0; 64 << 10];
    loop {
        stream.write_all(&chunk)?;
    }
}

/// Writes until every buffer in the path is full. Returns the number of bytes written.
pub fn fill(mut stream: &TcpStream) -> u64 {
    let full = "SO_SNDTIMEO is known to every kernel";
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect(full);
    let (chunk, mut bytes) = (vec![0; 256 << 10], 0);
    while let Ok(written) = stream.write(&chunk) {
        bytes += written as u64;
    }
    stream.set_write_timeout(None).expect(full);
    bytes
}

/// Waits until the peer's reset has arrived, with or without unread data. Panics if it does not arrive.
pub fn expect_reset(stream: &TcpStream) {
    let error = || stream.take_error().unwrap_or_else(|err| panic!("SO_ERROR: {err}"));
    let mut came = None;
    becomes(Duration::from_secs(30), || {
        came = error();
        came.is_some()
    });
    // A reset after the peer's FIN reads as EPIPE: tcp_reset() in net/ipv4/tcp_input.c.
    let kind = came.map(|err| err.kind());
    let reset = matches!(kind, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe));
    assert!(reset, "a reset was expected, not {kind:?}");
}

/// Ends a connection with a reset. Panics if that fails.
pub fn reset(stream: TcpStream) {
    try_reset(stream).unwrap_or_else(|err| panic!("{err}"));
}

/// Ends a connection with a reset.
///
/// # Errors
/// The kernel refuses the option. The connection then ends with a FIN.
pub fn try_reset(stream: TcpStream) -> io::Result<()> {
    let lingering = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    lingering.map_err(|err| io::Error::new(err.kind(), format!("SO_LINGER: {err}")))
}

/// Opens a connection from `client` to `address` on `server`. Returns the client's end, the server's end, and the peer
/// address that the server sees.
pub fn pair(client: &Host, server: &Host, address: SocketAddr) -> (TcpStream, TcpStream, SocketAddr) {
    let listener = server.listen(address);
    let near = client.connect(address).unwrap_or_else(|err| panic!("{client} to {address}: {err}"));
    let (far, peer) = listener.accept().unwrap_or_else(|err| panic!("{server}: {err}"));
    (near, far, peer)
}
