//! Memory for the bytes of chunks, used again: fresh pages for every chunk cost as much as hashing.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::geometry::to_u64;

/// How much memory lies ready at most while nobody uses it.
const FREE_BYTES_MAX: u64 = 8 << 20;

/// Buffers of one reader of chunks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<Free>);

#[derive(Default)]
struct Free(Mutex<Vec<Vec<u8>>>);

/// One buffer. It goes back when the last handle to its bytes is dropped.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    home: Arc<Free>,
}

impl Buffers {
    /// A buffer of that length. What it holds is of no use: all of it is to be overwritten.
    pub(crate) fn take(&self, len: usize) -> Buffer {
        let bytes = self.0.take(len).unwrap_or_else(|| vec![0; len]);
        Buffer { bytes, len, home: self.0.clone() }
    }
}

impl Free {
    fn take(&self, len: usize) -> Option<Vec<u8>> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The last one back is the likeliest to be in a cache still.
        let at = free.iter().rposition(|bytes| bytes.len() >= len)?;
        Some(free.remove(at))
    }

    fn give_back(&self, bytes: Vec<u8>) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held: u64 = free.iter().chain([&bytes]).map(|bytes| to_u64(bytes.len())).sum();
        if held <= FREE_BYTES_MAX {
            free.push(bytes);
        }
    }
}

impl fmt::Debug for Free {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Free")
    }
}

impl Buffer {
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// Its bytes, to be shared. No copy.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(buffers: &Buffers, len: usize, byte: u8) -> Bytes {
        let mut buffer = buffers.take(len);
        buffer.bytes_mut().fill(byte);
        buffer.freeze()
    }

    #[test]
    fn memory_is_used_again_once_nobody_holds_it() {
        let buffers = Buffers::default();
        let first = filled(&buffers, 4096, 1);
        let place = first.as_ptr();
        let part = first.slice(1000..);
        drop(first);
        let second = filled(&buffers, 4096, 2);
        assert_ne!(second.as_ptr(), place, "a part is still held");
        assert!(part.iter().all(|byte| *byte == 1));
        drop(part);
        let third = filled(&buffers, 100, 3);
        assert_eq!(third.as_ptr(), place);
        assert_eq!(third, [3; 100][..], "no more of it than was asked for");
        assert!(second.iter().all(|byte| *byte == 2));
    }

    #[test]
    fn what_lies_ready_is_bounded() {
        let buffers = Buffers::default();
        let half = usize::try_from(FREE_BYTES_MAX).unwrap() / 2;
        let held: Vec<_> = (0..4).map(|_| buffers.take(half)).collect();
        drop(held);
        assert_eq!(buffers.0.0.lock().unwrap().len(), 2);
        drop(buffers.take(4 * half));
        assert_eq!(buffers.0.0.lock().unwrap().len(), 2, "too long to lie ready");
    }
}
