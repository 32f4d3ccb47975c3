//! What `s3s` asks of a server, asked of the model.

use std::sync::{Arc, Mutex};

use blockferry::geometry::ByteRange;
use blockferry::store::model::{Model, ModelStore};
use blockferry::store::{Condition, Part, Put, Store, UploadId, Version};
use blockferry::{Error, ErrorKind};
use bytes::Bytes;
use futures_util::TryStreamExt;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

const OBJECT_BYTES_MAX: u64 = 1 << 32;

pub(super) struct Backend {
    store: ModelStore,
    deleted: Deleted,
}

/// The keys that were asked to be deleted, in order.
pub(super) type Deleted = Arc<Mutex<Vec<String>>>;

impl Backend {
    pub(super) fn new(model: &Model, deleted: Deleted) -> Self {
        Self { store: model.client(""), deleted }
    }
}

type Reply<T> = S3Result<S3Response<T>>;

fn reply<T>(output: T) -> Reply<T> {
    Ok(S3Response::new(output))
}

fn failed(error: Error) -> s3s::S3Error {
    let message = error.report();
    match error.kind() {
        ErrorKind::NotFound => s3_error!(NoSuchKey, "{message}"),
        ErrorKind::SourceChanged => s3_error!(PreconditionFailed, "{message}"),
        ErrorKind::Invalid => s3_error!(InvalidRequest, "{message}"),
        ErrorKind::Denied => s3_error!(AccessDenied, "{message}"),
        _ => s3_error!(InternalError, "{message}"),
    }
}

fn no_upload(error: Error) -> s3s::S3Error {
    match error.kind() {
        ErrorKind::NotFound => s3_error!(NoSuchUpload),
        ErrorKind::Invalid => s3_error!(InvalidPart, "{}", error.report()),
        _ => failed(error),
    }
}

fn tag_of(version: Option<&Version>) -> Option<ETag> {
    version.map(|version| ETag::Strong(version.to_string()))
}

fn version_of(tag: &ETag) -> Version {
    Version::new(Some(format!("\"{}\"", tag.value())), None).unwrap()
}

fn condition(if_match: Option<ETagCondition>, if_none_match: Option<ETagCondition>) -> Condition {
    match (if_match.and_then(ETagCondition::into_etag), if_none_match) {
        (Some(tag), _) => Condition::Match(version_of(&tag)),
        (None, Some(_)) => Condition::Absent,
        (None, None) => Condition::Any,
    }
}

/// Takes the body, and its checksum, which must fit.
async fn body_of(
    body: Option<StreamingBlob>,
    checksum: Option<&String>,
) -> S3Result<(Bytes, Option<String>)> {
    use base64::Engine as _;
    let mut bytes = Vec::new();
    if let Some(body) = body {
        let pieces: Vec<Bytes> = body.try_collect().await.map_err(|_| s3_error!(IncompleteBody))?;
        bytes = pieces.concat();
    }
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &bytes);
    let own = base64::prelude::BASE64_STANDARD.encode(crc.to_be_bytes());
    match checksum {
        Some(given) if *given != own => Err(s3_error!(BadDigest)),
        given => Ok((Bytes::from(bytes), given.cloned())),
    }
}

fn put_of(put: Put) -> S3Result<Option<ETag>> {
    match put {
        Put::Done(version) => Ok(tag_of(version.as_ref())),
        Put::Refused => Err(s3_error!(PreconditionFailed)),
        Put::Unknown(error) => Err(failed(error)),
    }
}

fn moment(ms: u64) -> Timestamp {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    Timestamp::from(at)
}

fn signed(len: u64) -> Option<i64> {
    i64::try_from(len).ok()
}

fn encoded(text: &str, coding: Option<&EncodingType>) -> String {
    if coding.is_none() {
        return text.to_owned();
    }
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[async_trait::async_trait]
impl S3 for Backend {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> Reply<PutObjectOutput> {
        let input = request.input;
        let (bytes, checksum) = body_of(input.body, input.checksum_crc64nvme.as_ref()).await?;
        let when = condition(input.if_match, input.if_none_match);
        let put = self.store.put(&input.key, bytes, &when).await.map_err(failed)?;
        reply(PutObjectOutput {
            e_tag: put_of(put)?,
            checksum_crc64nvme: checksum,
            ..Default::default()
        })
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> Reply<GetObjectOutput> {
        let input = request.input;
        let found = self.store.get(&input.key, OBJECT_BYTES_MAX).await.map_err(failed)?;
        let found = found.ok_or_else(|| s3_error!(NoSuchKey))?;
        if let Some(tag) = input.if_match.and_then(ETagCondition::into_etag)
            && found.version != Some(version_of(&tag))
        {
            return Err(s3_error!(PreconditionFailed));
        }
        let len = u64::try_from(found.bytes.len()).unwrap();
        let (bytes, content_range) = match input.range {
            None => (found.bytes, None),
            Some(range) => {
                let span = range.check(len)?;
                let text = format!("bytes {}-{}/{len}", span.start, span.end - 1);
                let part = ByteRange::new(span.start, span.end - span.start);
                (self.store.get_range(&input.key, part, None).await.map_err(failed)?, Some(text))
            }
        };
        let content_length = i64::try_from(bytes.len()).ok();
        let body = s3s::Body::from(bytes);
        reply(GetObjectOutput {
            body: Some(StreamingBlob::from(body)),
            content_length,
            content_range,
            e_tag: tag_of(found.version.as_ref()),
            ..Default::default()
        })
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> Reply<HeadObjectOutput> {
        let meta = self.store.head(&request.input.key).await.map_err(failed)?;
        let meta = meta.ok_or_else(|| s3_error!(NoSuchKey))?;
        reply(HeadObjectOutput {
            content_length: signed(meta.len),
            e_tag: tag_of(meta.version.as_ref()),
            last_modified: Some(moment(meta.modified_ms)),
            metadata: meta.label.map(|label| [("blockferry".to_owned(), label)].into()),
            ..Default::default()
        })
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> Reply<DeleteObjectOutput> {
        let key = request.input.key;
        self.store.delete(std::slice::from_ref(&key)).await.map_err(failed)?;
        self.deleted.lock().unwrap().push(key);
        reply(DeleteObjectOutput::default())
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> Reply<DeleteObjectsOutput> {
        let keys: Vec<String> =
            request.input.delete.objects.into_iter().map(|object| object.key).collect();
        self.store.delete(&keys).await.map_err(failed)?;
        self.deleted.lock().unwrap().extend(keys);
        reply(DeleteObjectsOutput::default())
    }

    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> Reply<CopyObjectOutput> {
        let input = request.input;
        let CopySource::Bucket { key, .. } = &input.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        self.store.copy(&self.store.address(key), &input.key).await.map_err(failed)?;
        let meta = self.store.head(&input.key).await.map_err(failed)?;
        let e_tag = tag_of(meta.and_then(|meta| meta.version).as_ref());
        let result = CopyObjectResult { e_tag, ..Default::default() };
        reply(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() })
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> Reply<ListObjectsV2Output> {
        let input = request.input;
        if input.bucket != super::server::BUCKET {
            return Err(s3_error!(NoSuchBucket));
        }
        let prefix = input.prefix.unwrap_or_default();
        let coding = input.encoding_type;
        let limit = usize::try_from(input.max_keys.unwrap_or(1000)).unwrap();
        let mut output =
            ListObjectsV2Output { encoding_type: coding.clone(), ..Default::default() };
        if input.delimiter.is_some() {
            // A page of two, so that there are pages.
            let names = self.store.folders(&prefix).await.map_err(failed)?;
            let after = input.continuation_token.unwrap_or_default();
            let mut names = names.into_iter().filter(|name| *name > after);
            let page: Vec<String> = names.by_ref().take(2).collect();
            output.is_truncated = Some(names.next().is_some());
            output.next_continuation_token =
                page.last().filter(|_| output.is_truncated == Some(true)).cloned();
            let common = |name: &String| CommonPrefix {
                prefix: Some(encoded(&format!("{prefix}{name}/"), coding.as_ref())),
            };
            output.common_prefixes = Some(page.iter().map(common).collect());
            return reply(output);
        }
        let after = input.start_after.as_deref();
        let page = self.store.list(&prefix, after, limit).await.map_err(failed)?;
        output.is_truncated = Some(page.more);
        let object = |entry: &blockferry::store::Entry| Object {
            key: Some(encoded(&entry.key, coding.as_ref())),
            size: signed(entry.meta.len),
            e_tag: tag_of(entry.meta.version.as_ref()),
            last_modified: Some(moment(entry.meta.modified_ms)),
            ..Default::default()
        };
        output.contents = Some(page.entries.iter().map(object).collect());
        reply(output)
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> Reply<CreateMultipartUploadOutput> {
        let input = request.input;
        let label = input.metadata.and_then(|all| all.get("blockferry").cloned());
        let label = label.unwrap_or_default();
        let id = self.store.upload_begin(&input.key, &label).await.map_err(failed)?.id;
        reply(CreateMultipartUploadOutput { upload_id: Some(id.0), ..Default::default() })
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> Reply<UploadPartOutput> {
        let input = request.input;
        let (bytes, checksum) = body_of(input.body, input.checksum_crc64nvme.as_ref()).await?;
        let number = u32::try_from(input.part_number).unwrap();
        let id = UploadId(input.upload_id);
        let part =
            self.store.upload_part(&input.key, &id, number, bytes).await.map_err(no_upload)?;
        reply(UploadPartOutput {
            e_tag: Some(ETag::Strong(part.tag.trim_matches('"').to_owned())),
            checksum_crc64nvme: checksum,
            ..Default::default()
        })
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> Reply<CompleteMultipartUploadOutput> {
        let input = request.input;
        let listed = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let part = |part: CompletedPart| Part {
            number: u32::try_from(part.part_number.unwrap_or(0)).unwrap(),
            len: 0,
            tag: part.e_tag.map(|tag| format!("\"{}\"", tag.value())).unwrap_or_default(),
            checksum: None,
        };
        let parts: Vec<Part> = listed.into_iter().map(part).collect();
        let when = condition(input.if_match, input.if_none_match);
        let id = UploadId(input.upload_id);
        let put = self.store.upload_complete(&input.key, &id, &parts, &when).await;
        let e_tag = put_of(put.map_err(no_upload)?)?;
        reply(CompleteMultipartUploadOutput { e_tag, ..Default::default() })
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> Reply<AbortMultipartUploadOutput> {
        let (key, id) = (request.input.key, UploadId(request.input.upload_id));
        if self.store.parts(&key, &id).await.map_err(failed)?.is_none() {
            return Err(s3_error!(NoSuchUpload));
        }
        self.store.upload_abort(&key, &id).await.map_err(failed)?;
        reply(AbortMultipartUploadOutput::default())
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> Reply<ListMultipartUploadsOutput> {
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        let uploads = self.store.uploads(&prefix).await.map_err(failed)?;
        let mut all: Vec<_> = uploads.into_iter().map(|upload| (upload.key, upload.id.0)).collect();
        all.sort();
        let from =
            (input.key_marker.unwrap_or_default(), input.upload_id_marker.unwrap_or_default());
        all.retain(|upload| *upload > from);
        // A page of two, so that there are pages.
        let is_truncated = all.len() > 2;
        all.truncate(2);
        let coding = input.encoding_type;
        let last = all.last().filter(|_| is_truncated).cloned();
        let upload = |(key, id): &(String, String)| MultipartUpload {
            key: Some(encoded(key, coding.as_ref())),
            upload_id: Some(id.clone()),
            initiated: Some(moment(1)),
            ..Default::default()
        };
        reply(ListMultipartUploadsOutput {
            uploads: Some(all.iter().map(upload).collect()),
            is_truncated: Some(is_truncated),
            next_key_marker: last.as_ref().map(|(key, _)| encoded(key, coding.as_ref())),
            next_upload_id_marker: last.map(|(_, id)| id),
            encoding_type: coding,
            ..Default::default()
        })
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> Reply<ListPartsOutput> {
        let input = request.input;
        let id = UploadId(input.upload_id);
        let parts = self.store.parts(&input.key, &id).await.map_err(failed)?;
        let mut parts = parts.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let after = input.part_number_marker.unwrap_or(0);
        parts.retain(|part| i64::from(part.number) > i64::from(after));
        let is_truncated = parts.len() > 2;
        parts.truncate(2);
        let part = |part: &Part| s3s::dto::Part {
            part_number: i32::try_from(part.number).ok(),
            size: signed(part.len),
            e_tag: Some(ETag::Strong(part.tag.trim_matches('"').to_owned())),
            checksum_crc64nvme: part.checksum.clone(),
            ..Default::default()
        };
        reply(ListPartsOutput {
            parts: Some(parts.iter().map(part).collect()),
            is_truncated: Some(is_truncated),
            ..Default::default()
        })
    }
}
