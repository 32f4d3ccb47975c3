//! The bodies of S3's replies as values, and of its requests as bytes. Pure.

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::store::Part;

/// What every error looks like.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ErrorBody {
    pub(super) code: String,
    pub(super) message: String,
    pub(super) request_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListBucketResult {
    #[serde(default)]
    pub(super) is_truncated: bool,
    #[serde(default)]
    pub(super) next_continuation_token: Option<String>,
    #[serde(default)]
    pub(super) encoding_type: Option<String>,
    #[serde(default)]
    pub(super) contents: Vec<Content>,
    #[serde(default)]
    pub(super) common_prefixes: Vec<CommonPrefix>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Content {
    pub(super) key: String,
    pub(super) size: u64,
    #[serde(default)]
    pub(super) last_modified: String,
    #[serde(default, rename = "ETag")]
    pub(super) e_tag: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CommonPrefix {
    pub(super) prefix: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InitiateMultipartUploadResult {
    pub(super) upload_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CompleteMultipartUploadResult {
    #[serde(default, rename = "ETag")]
    pub(super) e_tag: Option<String>,
}

/// Nothing of it is of use but that it is there, and no error.
#[derive(Debug, Deserialize)]
pub(super) struct CopyObjectResult {}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListMultipartUploadsResult {
    #[serde(default)]
    pub(super) is_truncated: bool,
    #[serde(default)]
    pub(super) next_key_marker: Option<String>,
    #[serde(default)]
    pub(super) next_upload_id_marker: Option<String>,
    #[serde(default)]
    pub(super) encoding_type: Option<String>,
    #[serde(default)]
    pub(super) upload: Vec<ListedUpload>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListedUpload {
    pub(super) key: String,
    pub(super) upload_id: String,
    #[serde(default)]
    pub(super) initiated: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListPartsResult {
    #[serde(default)]
    pub(super) is_truncated: bool,
    #[serde(default)]
    pub(super) part: Vec<ListedPart>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListedPart {
    pub(super) part_number: u32,
    pub(super) size: u64,
    #[serde(rename = "ETag")]
    pub(super) e_tag: String,
    #[serde(default, rename = "ChecksumCRC64NVME")]
    pub(super) checksum: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DeleteResult {
    #[serde(default)]
    pub(super) error: Vec<DeleteError>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DeleteError {
    #[serde(default)]
    pub(super) key: String,
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

/// Reads a reply whose outermost element has that name: `…Result`, for which some say `…Response`.
pub(super) fn parse<T: serde::de::DeserializeOwned>(root: &str, body: &[u8]) -> Result<T> {
    let unlike = || Error::new(ErrorKind::Io, format!("understand the store: no {root}"));
    let name = |root: &str| root_of(body) == Some(root.as_bytes());
    let respelt = root.strip_suffix("Result").map(|of| format!("{of}Response"));
    if !name(root) && !respelt.is_some_and(|respelt| name(&respelt)) {
        return Err(unlike());
    }
    quick_xml::de::from_reader(body).map_err(|error| unlike().because(error))
}

/// The error in a body, of whatever status, if there is one.
pub(super) fn error_of(body: &[u8]) -> Option<ErrorBody> {
    (root_of(body) == Some(b"Error".as_slice()))
        .then(|| quick_xml::de::from_reader(body).unwrap_or_default())
}

/// The name of the outermost element.
fn root_of(body: &[u8]) -> Option<&[u8]> {
    let mut rest = body.strip_prefix(b"\xef\xbb\xbf".as_slice()).unwrap_or(body);
    loop {
        rest = rest.trim_ascii_start().strip_prefix(b"<")?;
        if !matches!(rest.first()?, b'?' | b'!') {
            break;
        }
        let end = rest.iter().position(|byte| *byte == b'>')?;
        rest = &rest[end + 1..];
    }
    let end = rest.iter().position(|byte| byte.is_ascii_whitespace() || b"/>".contains(byte))?;
    Some(&rest[..end])
}

/// The body that deletes those keys, which have no character that XML would mind.
pub(super) fn delete(keys: &[String]) -> String {
    let mut body = String::from("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for key in keys {
        body.push_str("<Object><Key>");
        body.push_str(&quick_xml::escape::escape(key.as_str()));
        body.push_str("</Key></Object>");
    }
    body.push_str("<Quiet>true</Quiet></Delete>");
    body
}

/// The body that completes an upload out of those parts.
pub(super) fn complete(parts: &[Part]) -> String {
    let mut body =
        String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for part in parts {
        let tag = quick_xml::escape::escape(part.tag.as_str());
        body.push_str(&format!("<Part><PartNumber>{}</PartNumber>", part.number));
        body.push_str(&format!("<ETag>{tag}</ETag>"));
        if let Some(checksum) = &part.checksum {
            let checksum = quick_xml::escape::escape(checksum.as_str());
            body.push_str(&format!("<ChecksumCRC64NVME>{checksum}</ChecksumCRC64NVME>"));
        }
        body.push_str("</Part>");
    }
    body.push_str("</CompleteMultipartUpload>");
    body
}

/// What a listing calls a key: plain, or as in a URL where it says so.
pub(super) fn listed(text: &str, encoding_type: Option<&str>) -> Option<String> {
    if encoding_type != Some("url") {
        return Some(text.to_owned());
    }
    let spaced = text.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = b"<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\"><Name>b</Name>\
        <IsTruncated>true</IsTruncated><EncodingType>url</EncodingType><KeyCount>2</KeyCount>\
        <Contents><Key>a%2Fb+c</Key><LastModified>2026-11-26T00:00:00.000Z</LastModified>\
        <ETag>&quot;t&quot;</ETag><Size>3</Size></Contents>\
        <CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>\
        <Contents><Key>z</Key><Size>0</Size></Contents>\
        <NextContinuationToken>n</NextContinuationToken></ListBucketResult>";

    #[test]
    fn listings_are_read() {
        let list: ListBucketResult = parse("ListBucketResult", LIST).unwrap();
        assert!(list.is_truncated);
        assert_eq!(list.contents[0].e_tag.as_deref(), Some("\"t\""));
        let keys: Vec<_> = list
            .contents
            .iter()
            .map(|content| listed(&content.key, list.encoding_type.as_deref()).unwrap())
            .collect();
        assert_eq!(keys, ["a/b c", "z"]);
        assert_eq!(list.common_prefixes[0].prefix, "a/");
        assert_eq!(listed("a+%2F", None).unwrap(), "a+%2F");
        assert_eq!(listed("%ff", Some("url")), None);
    }

    #[test]
    fn an_error_is_told_from_a_reply() {
        let body = b"<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>m</Message>\
            <RequestId>r</RequestId><HostId>h</HostId></Error>";
        let error = error_of(body).unwrap();
        assert_eq!((error.code.as_str(), error.message.as_str()), ("SlowDown", "m"));
        assert!(error_of(LIST).is_none());
        assert!(error_of(b"").is_none() && error_of(b"<").is_none() && error_of(b"x").is_none());
        assert_eq!(error_of(b"<Error/>").unwrap().code, "");
        assert!(parse::<ListBucketResult>("ListBucketResult", body).is_err());
        assert!(parse::<ListPartsResult>("ListPartsResult", b"<ListPartsResult><Part>").is_err());
        assert!(parse::<ListPartsResult>("ListPartsResult", b"<ListPartsResponse/>").is_ok());
        assert!(parse::<ListPartsResult>("ListPartsResult", b"<ListResponse/>").is_err());
    }

    #[test]
    fn bodies_are_written() {
        let part = Part { number: 2, len: 1, tag: "\"t\"".into(), checksum: Some("c=".into()) };
        assert_eq!(
            complete(&[part]),
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Part><PartNumber>2</PartNumber><ETag>&quot;t&quot;</ETag>\
             <ChecksumCRC64NVME>c=</ChecksumCRC64NVME></Part></CompleteMultipartUpload>"
        );
        assert!(delete(&["a/b".into()]).contains("<Object><Key>a/b</Key></Object><Quiet>"));
    }
}
