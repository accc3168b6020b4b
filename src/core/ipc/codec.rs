//! Bytes ↔ values: little endian, lengths first, nothing left over.
//!
//! Trust: [`Reader`] is fed by a hostile peer. It never allocates more than the
//! frame is long, and every value it returns is in its type's range.

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The frame ends inside a value.
    #[error("it ends early")]
    Short,
    /// The frame goes on behind its last value.
    #[error("it goes on behind its end")]
    Long,
    /// The frame is larger than any message, or brings too many descriptors.
    #[error("it is too long")]
    TooLong,
    /// A number stands for nothing.
    #[error("a value is out of range")]
    Range,
    /// A descriptor is missing, or came where none belongs.
    #[error("a descriptor is missing or too many")]
    Descriptor,
}

/// A value with a form in frames.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);

    /// Takes the value off the front.
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed>;

    /// The value that `bytes` are, wholly.
    fn whole(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let value = Self::take(&mut reader)?;
        if reader.0.is_empty() { Ok(value) } else { Err(Malformed::Long) }
    }
}

/// What is left of a frame.
#[derive(Debug)]
pub struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// Takes `count` bytes off the front.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(taken)
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Wire for $number {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                let (bytes, rest) = from.0.split_first_chunk().ok_or(Malformed::Short)?;
                from.0 = rest;
                Ok(Self::from_le_bytes(*bytes))
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, i32, i64);

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (bytes, rest) = from.0.split_first_chunk().ok_or(Malformed::Short)?;
        from.0 = rest;
        Ok(*bytes)
    }
}

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::Range),
        }
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        if bool::take(from)? { T::take(from).map(Some) } else { Ok(None) }
    }
}

/// At most `MAX` bytes, such as a path or a text from the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes<const MAX: usize>(Vec<u8>);

impl<const MAX: usize> Bytes<MAX> {
    /// The bytes, if they are few enough.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= MAX).then(|| Self(bytes.to_vec()))
    }

    /// The first `MAX` bytes: for texts that may be cut.
    #[must_use]
    pub fn cut(bytes: &[u8]) -> Self {
        Self(bytes[..bytes.len().min(MAX)].to_vec())
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, what is not UTF-8 replaced.
    #[must_use]
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl<const MAX: usize> Wire for Bytes<MAX> {
    fn put(&self, out: &mut Vec<u8>) {
        u16::try_from(self.0.len()).expect("MAX is below 64 KiB").put(out);
        out.extend_from_slice(&self.0);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let length = usize::from(u16::take(from)?);
        if length > MAX {
            return Err(Malformed::Range);
        }
        from.bytes(length).map(|bytes| Self(bytes.to_vec()))
    }
}

/// At most `MAX` values of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> List<T, MAX> {
    /// The values, if they are few enough.
    #[must_use]
    pub fn new(values: Vec<T>) -> Option<Self> {
        (values.len() <= MAX).then_some(Self(values))
    }

    /// The values.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        &self.0
    }
}

impl<T: Wire, const MAX: usize> Wire for List<T, MAX> {
    fn put(&self, out: &mut Vec<u8>) {
        u16::try_from(self.0.len()).expect("MAX is below 65,536").put(out);
        self.0.iter().for_each(|value| value.put(out));
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = usize::from(u16::take(from)?);
        if count > MAX {
            return Err(Malformed::Range);
        }
        (0..count).map(|_| T::take(from)).collect::<Result<_, _>>().map(Self)
    }
}

/// Declares messages and how they stand in frames: a number, then the fields in
/// order. `+ fd` marks a message that carries a descriptor, `+ fds` two.
macro_rules! frames {
    (
        $(#[$outer:meta])*
        pub enum $name:ident {
            $( $(#[$inner:meta])* $tag:literal $variant:ident
               { $( $(#[$doc:meta])* $field:ident : $kind:ty ),* $(,)? } $(+ $fd:ident)? ),* $(,)?
        }
    ) => {
        $(#[$outer])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "a variant's line tells of its fields")]
        pub enum $name {
            $( $(#[$inner])* $variant { $( $(#[$doc])* $field: $kind ),* } ),*
        }

        impl $crate::ipc::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $( Self::$variant { $($field),* } => {
                        out.push($tag);
                        $( $crate::ipc::Wire::put($field, out); )*
                    } ),*
                }
            }

            fn take(from: &mut $crate::ipc::Reader<'_>) -> Result<Self, $crate::ipc::Malformed> {
                match <u8 as $crate::ipc::Wire>::take(from)? {
                    $( $tag => Ok(Self::$variant { $( $field: $crate::ipc::Wire::take(from)? ),* }), )*
                    _ => Err($crate::ipc::Malformed::Range),
                }
            }
        }

        impl $crate::ipc::Frame for $name {
            fn descriptors(&self) -> usize {
                match self {
                    $( Self::$variant { .. } => frames!(@carries $($fd)?) ),*
                }
            }
        }
    };
    (@carries fds) => { 2 };
    (@carries fd) => { 1 };
    (@carries) => { 0 };
}

pub(crate) use frames;
