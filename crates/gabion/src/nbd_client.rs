//! A small NBD client: blocking, many requests in flight, for the demo, `bench` and the tests.
//!
//! Source: the NBD protocol, fixed newstyle negotiation with `NBD_OPT_GO` and simple replies.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const NEWSTYLE_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const CLIENT_FIXED_NEWSTYLE: u32 = 1;
const CLIENT_NO_ZEROES: u32 = 2;
const OPTION_LIST: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

/// Bytes of an option's reply that this client is ready to take.
const OPTION_REPLY_MOST: u32 = 64 << 10;
const READ_BUFFER_BYTES: usize = 256 << 10;

/// FUA: the write is durable before it is answered.
pub const FLAG_FUA: u16 = 1;

/// Where an export is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// An export: `nbd://host:port/name` or `nbd+unix:///name?socket=path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    pub address: Address,
    pub export: String,
}

impl Uri {
    pub fn parse(typed: &str) -> Option<Self> {
        if let Some(rest) = typed.strip_prefix("nbd+unix:///") {
            let (export, socket) = rest.split_once("?socket=")?;
            let address = Address::Unix(PathBuf::from(socket));
            return Some(Self { address, export: export.to_owned() });
        }
        let (host, export) = typed.strip_prefix("nbd://")?.split_once('/')?;
        let port = if host.contains(':') { "" } else { ":10809" };
        Some(Self { address: Address::Tcp(format!("{host}{port}")), export: export.to_owned() })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    #[error("the connection broke: {0}")]
    Socket(#[from] io::Error),
    #[error("the server does not speak fixed newstyle NBD")]
    NotNbd,
    #[error("the server refused the export: {text} (reply {reply:#x})")]
    Refused { reply: u32, text: String },
    #[error("the server answered with something that was not asked for")]
    Confused,
    #[error("the request failed with error {0}")]
    Failed(u32),
}

/// One request; `length` of a write is its data's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    Read { offset: u64, length: u32 },
    Write { offset: u64, data: &'a [u8], fua: bool },
    Flush,
    Trim { offset: u64, length: u32 },
    Zero { offset: u64, length: u32 },
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    pub cookie: u64,
    /// The data of a read, nothing of the others; or the server's error number.
    pub result: Result<Vec<u8>, u32>,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn connect(address: &Address, most: Duration) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let address =
                    address.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
                let stream = TcpStream::connect_timeout(&address, most)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Address::Unix(path) => Ok(Self::Unix(UnixStream::connect(path)?)),
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    fn set_timeout(&self, most: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(most))?;
                stream.set_write_timeout(Some(most))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(most))?;
                stream.set_write_timeout(Some(most))
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long this client waits before it gives a server up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For the connection and each step of the handshake.
    pub handshake: Duration,
    /// For the next byte while a request is in flight.
    pub io: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { handshake: Duration::from_secs(10), io: Duration::from_secs(60) }
    }
}

/// An open export.
pub struct NbdClient {
    reader: BufReader<Socket>,
    writer: Socket,
    size_bytes: u64,
    flags: u16,
    next_cookie: u64,
    /// What each request in flight brings back.
    in_flight: BTreeMap<u64, usize>,
}

impl NbdClient {
    pub fn connect(address: &Address, export: &str, patience: Patience) -> Result<Self, NbdError> {
        let mut client = Self::greet(address, patience)?;
        client.go(export)?;
        client.writer.set_timeout(patience.io)?;
        Ok(client)
    }

    /// The names of all exports.
    pub fn list(address: &Address, patience: Patience) -> Result<Vec<String>, NbdError> {
        let mut client = Self::greet(address, patience)?;
        client.option(OPTION_LIST, &[])?;
        let mut names = Vec::new();
        loop {
            let (reply, data) = client.option_reply(OPTION_LIST)?;
            match reply {
                REPLY_ACK => return Ok(names),
                REPLY_SERVER if data.len() >= 4 => {
                    names.push(String::from_utf8_lossy(&data[4..]).into_owned());
                }
                _ => return Err(NbdError::Confused),
            }
        }
    }

    fn greet(address: &Address, patience: Patience) -> Result<Self, NbdError> {
        let writer = Socket::connect(address, patience.handshake)?;
        writer.set_timeout(patience.handshake)?;
        let reader = BufReader::with_capacity(READ_BUFFER_BYTES, writer.try_clone()?);
        let mut client = Self {
            reader,
            writer,
            size_bytes: 0,
            flags: 0,
            next_cookie: 1,
            in_flight: BTreeMap::new(),
        };
        let magics = (client.u64()?, client.u64()?);
        let server_flags = u32::from(client.u16()?);
        if magics != (NEWSTYLE_MAGIC, OPTION_MAGIC) || server_flags & CLIENT_FIXED_NEWSTYLE == 0 {
            return Err(NbdError::NotNbd);
        }
        let flags = CLIENT_FIXED_NEWSTYLE | (server_flags & CLIENT_NO_ZEROES);
        client.writer.write_all(&flags.to_be_bytes())?;
        Ok(client)
    }

    fn go(&mut self, export: &str) -> Result<(), NbdError> {
        let length = u32::try_from(export.len()).map_err(|_| NbdError::Confused)?;
        let mut data = length.to_be_bytes().to_vec();
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&0u16.to_be_bytes());
        self.option(OPTION_GO, &data)?;
        loop {
            let (reply, data) = self.option_reply(OPTION_GO)?;
            match reply {
                REPLY_ACK => return Ok(()),
                REPLY_INFO if data.len() == 12 && data[..2] == INFO_EXPORT.to_be_bytes() => {
                    self.size_bytes = u64::from_be_bytes(data[2..10].try_into().expect("8 bytes"));
                    self.flags = u16::from_be_bytes(data[10..].try_into().expect("2 bytes"));
                }
                REPLY_INFO => {}
                _ => return Err(NbdError::Confused),
            }
        }
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Result<(), NbdError> {
        let length = u32::try_from(data.len()).map_err(|_| NbdError::Confused)?;
        let mut message = OPTION_MAGIC.to_be_bytes().to_vec();
        message.extend_from_slice(&option.to_be_bytes());
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(data);
        Ok(self.writer.write_all(&message)?)
    }

    fn option_reply(&mut self, option: u32) -> Result<(u32, Vec<u8>), NbdError> {
        let magic = self.u64()?;
        let answered = self.u32()?;
        let reply = self.u32()?;
        let length = self.u32()?;
        if magic != OPTION_REPLY_MAGIC || answered != option || length > OPTION_REPLY_MOST {
            return Err(NbdError::Confused);
        }
        let data = self.take(usize::try_from(length).map_err(|_| NbdError::Confused)?)?;
        if reply & REPLY_ERROR != 0 {
            let text = String::from_utf8_lossy(&data).into_owned();
            return Err(NbdError::Refused { reply, text });
        }
        Ok((reply, data))
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Transmission flags as the server sent them.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Sends a request and returns its cookie; `receive` brings the answer.
    pub fn submit(&mut self, request: Request<'_>) -> Result<u64, NbdError> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let (command, flags, offset, length) = match request {
            Request::Read { offset, length } => (0u16, 0, offset, length),
            Request::Write { offset, data, fua } => {
                let length = u32::try_from(data.len()).map_err(|_| NbdError::Confused)?;
                (1, if fua { FLAG_FUA } else { 0 }, offset, length)
            }
            Request::Flush => (3, 0, 0, 0),
            Request::Trim { offset, length } => (4, 0, offset, length),
            Request::Zero { offset, length } => (6, 0, offset, length),
        };
        let mut header = Vec::with_capacity(28);
        header.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header.extend_from_slice(&flags.to_be_bytes());
        header.extend_from_slice(&command.to_be_bytes());
        header.extend_from_slice(&cookie.to_be_bytes());
        header.extend_from_slice(&offset.to_be_bytes());
        header.extend_from_slice(&length.to_be_bytes());
        let brings = match request {
            Request::Read { length, .. } => {
                usize::try_from(length).map_err(|_| NbdError::Confused)?
            }
            Request::Write { data, .. } => {
                header.extend_from_slice(data);
                0
            }
            Request::Flush | Request::Trim { .. } | Request::Zero { .. } => 0,
        };
        self.writer.write_all(&header)?;
        self.in_flight.insert(cookie, brings);
        Ok(cookie)
    }

    /// The next answer, whichever request it is of.
    pub fn receive(&mut self) -> Result<Completion, NbdError> {
        let magic = self.u32()?;
        let error = self.u32()?;
        let cookie = self.u64()?;
        let brings = self.in_flight.remove(&cookie);
        let (REPLY_MAGIC, Some(brings)) = (magic, brings) else {
            return Err(NbdError::Confused);
        };
        let result = if error == 0 { Ok(self.take(brings)?) } else { Err(error) };
        Ok(Completion { cookie, result })
    }

    /// One request and its answer. Nothing else may be in flight.
    pub fn call(&mut self, request: Request<'_>) -> Result<Vec<u8>, NbdError> {
        let cookie = self.submit(request)?;
        let completion = self.receive()?;
        if completion.cookie != cookie {
            return Err(NbdError::Confused);
        }
        completion.result.map_err(NbdError::Failed)
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, NbdError> {
        self.call(Request::Read { offset, length })
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        self.call(Request::Write { offset, data, fua: false }).map(drop)
    }

    pub fn flush(&mut self) -> Result<(), NbdError> {
        self.call(Request::Flush).map(drop)
    }

    /// Says good-bye, so that the server does not take it for a broken connection.
    pub fn disconnect(mut self) {
        let mut message = REQUEST_MAGIC.to_be_bytes().to_vec();
        message.extend_from_slice(&[0, 0, 0, 2]);
        message.extend_from_slice(&[0; 20]);
        // The server may have closed already; either way the connection ends here.
        drop(self.writer.write_all(&message));
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>, NbdError> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> Result<u16, NbdError> {
        let mut bytes = [0; 2];
        self.reader.read_exact(&mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn u32(&mut self) -> Result<u32, NbdError> {
        let mut bytes = [0; 4];
        self.reader.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, NbdError> {
        let mut bytes = [0; 8];
        self.reader.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_a_socket_and_an_export() {
        let tcp = Uri::parse("nbd://127.0.0.1:10809/vm1").unwrap();
        assert_eq!(tcp.address, Address::Tcp("127.0.0.1:10809".to_owned()));
        assert_eq!(tcp.export, "vm1");
        let short = Uri::parse("nbd://storage/vm1").unwrap();
        assert_eq!(short.address, Address::Tcp("storage:10809".to_owned()));
        let unix = Uri::parse("nbd+unix:///vm1?socket=/run/nbd.sock").unwrap();
        assert_eq!(unix.address, Address::Unix("/run/nbd.sock".into()));
        assert_eq!(Uri::parse("vm1"), None);
    }
}
