//! PEM files: certificates, private keys, lists of revoked certificates.

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::to_usize;

pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = contents(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|cause| {
        Error::new(ErrorKind::Invalid, "read certificates").within(place(path)).because(cause)
    })?;
    if all.is_empty() { Err(nothing_in("a certificate").within(place(path))) } else { Ok(all) }
}

pub(super) fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let pem = contents(path)?;
    let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|cause| {
        let action = "read lists of revoked certificates";
        Error::new(ErrorKind::Invalid, action).within(place(path)).because(cause)
    })?;
    match all.is_empty() {
        true => Err(nothing_in("a list of revoked certificates").within(place(path))),
        false => Ok(all),
    }
}

pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    // The cause is left out: it may quote what it could not read.
    PrivateKeyDer::from_pem_slice(&contents(path)?)
        .map_err(|_| nothing_in("a private key that is not encrypted").within(place(path)))
}

pub(super) fn nothing_in(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("find {what} in PEM form"))
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    let read = || {
        let file = File::open_path(path)?;
        let len = file.len()?;
        if len > FILE_BYTES_MAX {
            return Err(Error::new(ErrorKind::Invalid, "read certificates: it is over 1 MiB"));
        }
        let mut bytes = vec![0; to_usize(len)];
        let read = file.read_at(0, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    };
    read().map_err(|error: Error| error.within(place(path)))
}

pub(super) fn place(path: &Path) -> String {
    path.display().to_string()
}

const FILE_BYTES_MAX: u64 = 1 << 20;
