//! Multipart uploads of an S3 server, with what `object_store` has no calls for.

use bytes::Bytes;
use http::Method;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::to_u64;
use crate::store::{
    Begun, Condition, PAGE_ENTRIES_MAX, PART_COUNT_MAX, Part, Put, Upload, UploadId, Version,
    check_prefix,
};

use super::request::{Ask, CHECKSUM, LIST_BYTES_MAX, text};
use super::xml::{
    self, CompleteMultipartUploadResult, InitiateMultipartUploadResult, ListMultipartUploadsResult,
    ListPartsResult,
};
use super::{LABEL, PAGE_COUNT_MAX, S3Store, times};

/// The longest name of an upload, and the longest tag of a part with its checksum.
const NAME_BYTES_MAX: usize = 4096;

impl S3Store {
    pub(super) async fn begin(&self, key: &str, label: &str) -> Result<Begun> {
        let whole = self.whole(key)?;
        let ask = Ask::new(Method::POST, "begin an upload", Some(&whole))
            .query("uploads", "")
            .header(LABEL, label)
            .header("x-amz-checksum-algorithm", "CRC64NVME");
        let reply = self.client.ask(ask).await?;
        let root = "InitiateMultipartUploadResult";
        let begun: InitiateMultipartUploadResult = self.parse(root, &reply.body)?;
        if begun.upload_id.is_empty() {
            return Err(self.odd("begin an upload: it has no name", key));
        }
        Ok(Begun::new(UploadId(begun.upload_id)))
    }

    pub(super) async fn part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        bytes: Bytes,
    ) -> Result<Part> {
        if !(1..=PART_COUNT_MAX).contains(&number) {
            return Err(Error::new(ErrorKind::Invalid, format!("upload part {number} of 10000")));
        }
        let whole = self.whole(key)?;
        let len = to_u64(bytes.len());
        let ask = Ask::new(Method::PUT, "upload a part", Some(&whole))
            .query("partNumber", number.to_string())
            .query("uploadId", upload.0.as_str())
            .body(bytes);
        let reply = self.client.ask(ask).await?;
        let tag = text(&reply.headers, "etag").filter(|tag| !tag.is_empty());
        let tag = tag.ok_or_else(|| self.odd("upload a part: it has no ETag", key))?.to_owned();
        let checksum = text(&reply.headers, CHECKSUM).map(str::to_owned);
        Ok(Part { number, len, tag, checksum })
    }

    pub(super) async fn complete(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        when: &Condition,
    ) -> Result<Put> {
        let whole = self.whole(key)?;
        let ask = Ask::new(Method::POST, "complete an upload", Some(&whole))
            .query("uploadId", upload.0.as_str())
            .header("content-type", "application/xml")
            .text(xml::complete(parts));
        let reply = match self.conditionally(ask, when, key).await? {
            Ok(reply) => reply,
            Err(put) => return Ok(put),
        };
        let root = "CompleteMultipartUploadResult";
        let done: CompleteMultipartUploadResult = match self.parse(root, &reply.body) {
            Ok(done) => done,
            // It was a success, and broke off in the middle.
            Err(error) if *when != Condition::Any => return Ok(Put::Unknown(error)),
            Err(error) => return Err(error.retryable(true)),
        };
        let version = Version::new(done.e_tag.filter(|tag| !tag.is_empty()), None);
        match version {
            Some(version) => Ok(Put::Done(Some(version))),
            // Old Ceph tells none.
            None => Ok(Put::Done(self.head(key).await?.and_then(|meta| meta.version))),
        }
    }

    pub(super) async fn abort(&self, key: &str, upload: &UploadId) -> Result<()> {
        let whole = self.whole(key)?;
        let ask = Ask::new(Method::DELETE, "abort an upload", Some(&whole))
            .query("uploadId", upload.0.as_str());
        match self.client.send(ask).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_missing() => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    pub(super) async fn unfinished(&self, prefix: &str) -> Result<Vec<Upload>> {
        check_prefix(prefix)?;
        let whole = self.whole_prefix(prefix)?;
        let mut uploads = Vec::new();
        let mut from: Option<(String, String)> = None;
        for _ in 0..PAGE_COUNT_MAX {
            let mut ask = Ask::new(Method::GET, "list uploads", None)
                .query("uploads", "")
                .query("encoding-type", "url")
                .query("prefix", whole.as_str())
                // Some stores send more than a page unless they are told.
                .query("max-uploads", PAGE_ENTRIES_MAX.to_string())
                .reply_bytes_max(LIST_BYTES_MAX);
            if let Some((key, upload)) = from.take() {
                ask = ask.query("key-marker", key).query("upload-id-marker", upload);
            }
            let reply = self.client.ask(ask).await?;
            let root = "ListMultipartUploadsResult";
            let listed: ListMultipartUploadsResult = self.parse(root, &reply.body)?;
            let coding = listed.encoding_type.as_deref();
            if listed.upload.len() > PAGE_ENTRIES_MAX {
                return Err(self.endless("list uploads"));
            }
            for upload in listed.upload {
                if upload.upload_id.len() > NAME_BYTES_MAX {
                    return Err(self.odd("list uploads: a name is too long", prefix));
                }
                let key = xml::listed(&upload.key, coding).and_then(|key| self.below(&key));
                // Some servers do not look at the prefix.
                let Some(key) = key.filter(|key| key.starts_with(prefix)) else { continue };
                let begun_ms = times::iso_ms(&upload.initiated).unwrap_or(0);
                uploads.push(Upload { key, id: UploadId(upload.upload_id), begun_ms });
            }
            let key = listed.next_key_marker.and_then(|key| xml::listed(&key, coding));
            match key.filter(|key| listed.is_truncated && !key.is_empty()) {
                Some(key) => from = Some((key, listed.next_upload_id_marker.unwrap_or_default())),
                None => return Ok(uploads),
            }
        }
        Err(self.endless("list uploads"))
    }

    pub(super) async fn held(&self, key: &str, upload: &UploadId) -> Result<Option<Vec<Part>>> {
        let whole = self.whole(key)?;
        let mut parts: Vec<Part> = Vec::new();
        loop {
            let last = parts.last().map_or(0, |part| part.number);
            let mut ask = Ask::new(Method::GET, "list parts", Some(&whole))
                .query("uploadId", upload.0.as_str())
                .reply_bytes_max(LIST_BYTES_MAX);
            if last > 0 {
                ask = ask.query("part-number-marker", last.to_string());
            }
            let reply = match self.client.send(ask).await {
                Ok(reply) => reply,
                Err(failure) if failure.is_missing() => return Ok(None),
                Err(failure) => return Err(failure.error),
            };
            let listed: ListPartsResult = self.parse("ListPartsResult", &reply.body)?;
            for part in listed.part {
                let tells = part.e_tag.len() + part.checksum.as_ref().map_or(0, String::len);
                if part.part_number > PART_COUNT_MAX || tells > NAME_BYTES_MAX {
                    return Err(self.odd("list parts: there is none of that kind", key));
                }
                // In order, so that a server that goes in circles comes to an end.
                if parts.last().is_some_and(|before| before.number >= part.part_number) {
                    return Err(self.odd("list parts: they are out of order", key));
                }
                let (number, len) = (part.part_number, part.size);
                parts.push(Part { number, len, tag: part.e_tag, checksum: part.checksum });
            }
            let is_further = parts.last().is_some_and(|part| part.number > last);
            if !listed.is_truncated || !is_further {
                return Ok(Some(parts));
            }
        }
    }
}
