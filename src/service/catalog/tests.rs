//! Every rule of the catalog, each alone. Pure.

use super::*;
use crate::service::model::Rules;

const NOW: u64 = 1_000;

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

fn end(text: &str) -> Endpoint {
    let (name, id) = text.split_once('/').unwrap();
    Endpoint::new(region(name), id.parse().unwrap())
}

fn caller(project: &str) -> Caller {
    let star = vec!["*".to_owned()];
    let key = format!("key-{project}");
    Caller { project: project.into(), key, regions: star.clone(), images: star }
}

fn fresh(number: u8) -> Fresh {
    Fresh { job: JobId::from_bytes([number; 16]), engine_token: format!("t{number}") }
}

/// Regions `a`, `b` and `c`; custom images `a/s1` to `a/s9` of project `p`.
fn catalog() -> Catalog {
    let limits = RegionLimits { copies_max: 2, queue_max: 3, images_max: 10 };
    let regions = ["a", "b", "c"].map(|name| (region(name), limits));
    let mut catalog = Catalog::new(regions.into());
    for number in 1..=9 {
        catalog.put(Image::new(region("a"), format!("s{number}").parse().unwrap(), "p"));
    }
    catalog.take_changes();
    catalog
}

fn change(catalog: &mut Catalog, id: &str, change: impl FnOnce(&mut Image)) {
    let end = end(id);
    let mut image = Image::clone(catalog.image(&end.region, &end.image).unwrap());
    change(&mut image);
    catalog.put(image);
}

fn order(from: &str, to: &str) -> CopyOrder {
    CopyOrder::new(end(from), vec![end(to)], Rules::ALIBABA)
}

fn start(catalog: &mut Catalog, number: u8, from: &str, to: &str) -> Answer<Vec<Leg>> {
    catalog.start(&caller("p"), &order(from, to), &[fresh(number)], NOW)
}

fn refused<T: std::fmt::Debug>(answer: Answer<T>) -> &'static str {
    answer.unwrap_err().name()
}

fn states(catalog: &Catalog) -> Vec<CopyState> {
    catalog.copies().map(|copy| copy.state.clone()).collect()
}

#[test]
fn so_many_run_the_others_wait_in_order_and_the_rest_is_refused() {
    let mut catalog = catalog();
    for number in 1..=2 {
        start(&mut catalog, number, &format!("a/s{number}"), &format!("b/t{number}")).unwrap();
        assert_eq!(catalog.promote(), [JobId::from_bytes([number; 16])]);
    }
    for number in 3..=5 {
        start(&mut catalog, number, &format!("a/s{number}"), &format!("b/t{number}")).unwrap();
        assert_eq!(catalog.promote(), []);
    }
    assert_eq!(catalog.line(&region("b")), (3, 2));
    assert_eq!(refused(start(&mut catalog, 6, "a/s6", "b/t6")), "queue_full");
    start(&mut catalog, 7, "a/s7", "c/t7").unwrap();
    assert_eq!(catalog.promote(), [JobId::from_bytes([7; 16])], "another region has its own line");

    catalog.settle(JobId::from_bytes([2; 16]), Ending::Cancelled, NOW);
    assert_eq!(catalog.promote(), [JobId::from_bytes([3; 16])], "who came first goes first");
    let settled = catalog.settle(JobId::from_bytes([1; 16]), Ending::Done { image_bytes: 7 }, NOW);
    assert_eq!(settled, Some(CopyState::Done));
    assert_eq!(catalog.promote(), [JobId::from_bytes([4; 16])]);
    let target = catalog.image(&region("b"), &"t1".parse().unwrap()).unwrap();
    assert_eq!((target.state, target.image_bytes), (ImageState::Available, 7));
    assert!(catalog.image(&region("b"), &"t2".parse().unwrap()).is_none());
}

#[test]
fn the_first_ending_stays() {
    let endings = [
        (Ending::Done { image_bytes: 1 }, CopyState::Done),
        (Ending::Cancelled, CopyState::Cancelled),
        (
            Ending::Failed { kind: ErrorKind::Io, message: "m".into() },
            CopyState::Failed { kind: ErrorKind::Io, message: "m".into() },
        ),
    ];
    for (first, state) in &endings {
        for (second, _) in &endings {
            let mut catalog = catalog();
            start(&mut catalog, 1, "a/s1", "b/t").unwrap();
            catalog.promote();
            let job = JobId::from_bytes([1; 16]);
            assert_eq!(catalog.settle(job, first.clone(), NOW).as_ref(), Some(state));
            catalog.take_changes();
            assert_eq!(catalog.settle(job, second.clone(), NOW).as_ref(), Some(state));
            assert!(catalog.take_changes().is_empty(), "{first:?} then {second:?}");
            assert_eq!(catalog.line(&region("b")), (0, 0));
        }
    }
}

#[test]
fn a_token_starts_once() {
    let mut catalog = catalog();
    let token = |request| Token { scope: "p".into(), text: "t".into(), request: [request; 32] };
    let mut first = order("a/s1", "b/t1");
    first.token = Some(token(1));
    let legs = catalog.start(&caller("p"), &first, &[fresh(1)], NOW).unwrap();
    let mut again = order("a/s1", "b/t2");
    again.token = Some(token(1));
    assert_eq!(catalog.start(&caller("p"), &again, &[fresh(2)], NOW).unwrap(), legs);
    again.token = Some(token(2));
    assert_eq!(refused(catalog.start(&caller("p"), &again, &[fresh(2)], NOW)), "token_reused");
    catalog.settle(legs[0].job, Ending::Done { image_bytes: 1 }, NOW);
    assert_eq!(catalog.replayed(&token(1)).unwrap(), Some(legs), "also after the end");
    // What was refused is not remembered.
    let mut bad = order("a/nothing", "b/t3");
    bad.token = Some(Token { scope: "p".into(), text: "u".into(), request: [1; 32] });
    assert_eq!(refused(catalog.start(&caller("p"), &bad, &[fresh(3)], NOW)), "no_image");
    let good = CopyOrder { source: end("a/s2"), ..bad };
    catalog.start(&caller("p"), &good, &[fresh(3)], NOW).unwrap();
    catalog.forget(NOW);
    assert!(catalog.replayed(&token(1)).unwrap().is_some(), "not older than that");
    catalog.forget(NOW + 1);
    assert!(catalog.replayed(&token(1)).unwrap().is_none());
    assert_eq!(catalog.copies().count(), 1, "what has not ended is not forgotten");
}

#[test]
fn what_may_be_copied_where() {
    let mut catalog = catalog();
    change(&mut catalog, "a/s2", |image| image.kind = ImageKind::System);
    change(&mut catalog, "a/s3", |image| image.kind = ImageKind::Iso);
    change(&mut catalog, "a/s4", |image| image.kind = ImageKind::WholeInstance);
    change(&mut catalog, "a/s5", |image| image.state = ImageState::CreateFailed);
    change(&mut catalog, "a/s6", |image| image.state = ImageState::Deleting);
    change(&mut catalog, "a/s7", |image| {
        image.project = "q".into();
        image.shared_with.insert("p".into());
    });
    change(&mut catalog, "a/s8", |image| image.project = "q".into());
    let huawei =
        |from: &str, to: &str| CopyOrder { rules: Rules::HUAWEI_IN_REGION, ..order(from, to) };
    let cases = [
        (order("a/s1", "b/t"), "ok"),
        (order("x/s1", "b/t"), "no_source_region"),
        (order("a/s1", "x/t"), "no_region"),
        (order("a/s0", "b/t"), "no_image"),
        (order("a/s2", "b/t"), "not_own"),
        (order("a/s3", "b/t"), "kind_not_copied"),
        (order("a/s4", "b/t"), "ok"),
        (
            CopyOrder { rules: Rules::HUAWEI_CROSS_REGION, ..order("a/s4", "b/t") },
            "kind_not_copied",
        ),
        (huawei("a/s4", "a/t"), "kind_not_copied"),
        (order("a/s5", "b/t"), "not_available"),
        (order("a/s6", "b/t"), "no_image"),
        (order("a/s7", "b/t"), "shared_elsewhere"),
        (order("a/s7", "a/t"), "ok"),
        (order("a/s8", "b/t"), "no_image"),
        (order("a/s1", "a/t"), "same_region"),
        (huawei("a/s1", "a/t"), "ok"),
        (CopyOrder { rules: Rules::BAIDU, ..order("a/s1", "a/t") }, "same_region"),
        (CopyOrder { key: Some("k".into()), ..order("a/s1", "a/t") }, "no_keys"),
    ];
    for (order, wanted) in cases {
        let told = catalog.check(&caller("p"), &order).map_or_else(|r| r.name(), |_| "ok");
        assert_eq!(told, wanted, "{} to {:?}", order.source, order.targets);
    }
    let mut narrow = caller("p");
    narrow.regions = vec!["a".into()];
    assert_eq!(refused(catalog.check(&narrow, &order("a/s1", "b/t"))), "no_region");
    narrow.regions = vec!["b".into()];
    assert_eq!(refused(catalog.check(&narrow, &order("a/s1", "b/t"))), "no_source_region");
}

#[test]
fn names_and_copies_do_not_meet_and_quotas_hold() {
    let mut catalog = catalog();
    let named = |from: &str, to: &str| CopyOrder { name: "disk".into(), ..order(from, to) };
    catalog.start(&caller("p"), &named("a/s1", "b/t1"), &[fresh(1)], NOW).unwrap();
    let told = catalog.start(&caller("p"), &named("a/s2", "b/t2"), &[fresh(2)], NOW);
    assert_eq!(refused(told), "name_taken");
    let free = CopyOrder { rules: Rules::BAIDU, ..named("a/s2", "b/t2") };
    assert!(catalog.check(&caller("p"), &free).is_ok(), "not every cloud minds");
    assert_eq!(refused(start(&mut catalog, 2, "a/s1", "b/t2")), "copy_under_way");
    let free = CopyOrder { rules: Rules::BAIDU, ..order("a/s1", "b/t2") };
    assert!(catalog.check(&caller("p"), &free).is_ok());
    start(&mut catalog, 2, "a/s1", "c/t2").unwrap();
    for number in 3..=12 {
        catalog.put(Image::new(region("b"), format!("x{number}").parse().unwrap(), "p"));
    }
    assert_eq!(refused(start(&mut catalog, 3, "a/s3", "b/t3")), "image_quota");
    assert_eq!(refused(start(&mut catalog, 3, "a/s3", "c/t2")), "failed", "the id is taken");
}

#[test]
fn all_legs_start_or_none() {
    let mut catalog = catalog();
    let mut fan = order("a/s1", "b/t");
    fan.targets.push(end("x/t"));
    assert_eq!(refused(catalog.start(&caller("p"), &fan, &[fresh(1), fresh(2)], NOW)), "no_region");
    assert!(catalog.take_changes().is_empty());
    fan.targets[1] = end("c/t");
    let legs = catalog.start(&caller("p"), &fan, &[fresh(1), fresh(2)], NOW).unwrap();
    assert_eq!(legs.len(), 2);
    assert_eq!(catalog.promote().len(), 2);
    catalog.settle(legs[0].job, Ending::Cancelled, NOW);
    assert_eq!(states(&catalog), [CopyState::Cancelled, CopyState::Running], "each on its own");
}

#[test]
fn what_may_be_cancelled() {
    let mut catalog = catalog();
    for number in 1..=3 {
        start(&mut catalog, number, &format!("a/s{number}"), &format!("b/t{number}")).unwrap();
    }
    catalog.promote();
    let cancel = |catalog: &mut Catalog, who: &str, what: &str| {
        catalog.cancel(&caller(who), &end(what), NOW)
    };
    let job = |number| JobId::from_bytes([number; 16]);
    assert_eq!(cancel(&mut catalog, "p", "b/t3").unwrap(), CancelStep::Cancelled(job(3)));
    assert_eq!(refused(cancel(&mut catalog, "p", "b/t3")), "no_image", "it is gone");
    assert_eq!(cancel(&mut catalog, "p", "b/t1").unwrap(), CancelStep::Ask(job(1)));
    assert_eq!(refused(cancel(&mut catalog, "q", "b/t1")), "no_image", "none of its business");
    assert_eq!(refused(cancel(&mut catalog, "p", "a/s1")), "not_a_copy");
    assert_eq!(refused(cancel(&mut catalog, "p", "c/t1")), "no_image");
    catalog.settle(job(1), Ending::Done { image_bytes: 1 }, NOW);
    assert_eq!(refused(cancel(&mut catalog, "p", "b/t1")), "finished");
    let failed = Ending::Failed { kind: ErrorKind::Io, message: String::new() };
    catalog.settle(job(2), failed, NOW);
    assert_eq!(refused(cancel(&mut catalog, "p", "b/t2")), "had_failed");
}

#[test]
fn what_may_be_deleted() {
    let mut catalog = catalog();
    start(&mut catalog, 1, "a/s1", "b/t1").unwrap();
    change(&mut catalog, "a/s2", |image| image.kind = ImageKind::System);
    change(&mut catalog, "a/s3", |image| {
        image.shared_with.insert("q".into());
    });
    let delete = |catalog: &mut Catalog, what: &str, shared_too| {
        catalog.begin_delete(&caller("p"), &end(what), shared_too)
    };
    assert_eq!(refused(delete(&mut catalog, "b/t1", true)), "being_copied");
    assert_eq!(refused(delete(&mut catalog, "a/s1", true)), "being_read");
    assert_eq!(refused(delete(&mut catalog, "a/s2", true)), "not_own");
    assert_eq!(refused(delete(&mut catalog, "a/s3", false)), "shared_with_others");
    assert!(delete(&mut catalog, "a/s3", true).unwrap());
    assert_eq!(refused(delete(&mut catalog, "a/none", true)), "no_image");
    let failed = Ending::Failed { kind: ErrorKind::Io, message: String::new() };
    catalog.settle(JobId::from_bytes([1; 16]), failed, NOW);
    assert!(!delete(&mut catalog, "b/t1", true).unwrap(), "a name without bytes");
    assert!(catalog.image(&region("b"), &"t1".parse().unwrap()).is_none());
    assert!(delete(&mut catalog, "a/s1", true).unwrap());
    catalog.end_delete(&end("a/s1"));
    assert!(catalog.image(&region("a"), &"s1".parse().unwrap()).is_none());
    catalog.end_delete(&end("a/s4"));
    assert!(catalog.image(&region("a"), &"s4".parse().unwrap()).is_some(), "it was not asked for");
}

#[test]
fn a_catalog_made_of_changes_alone_is_the_same() {
    let mut catalog = catalog();
    let mut shown = catalog.clone();
    start(&mut catalog, 1, "a/s1", "b/t1").unwrap();
    start(&mut catalog, 2, "a/s2", "b/t2").unwrap();
    catalog.promote();
    catalog.settle(JobId::from_bytes([1; 16]), Ending::Done { image_bytes: 9 }, NOW);
    for change in catalog.take_changes() {
        shown.apply(&change);
    }
    assert_eq!(states(&shown), states(&catalog));
    assert_eq!(shown.line(&region("b")), catalog.line(&region("b")));
    assert_eq!(shown.readers, catalog.readers);
    assert_eq!(shown.order_next, catalog.order_next);
    let images = |catalog: &Catalog| catalog.images().cloned().collect::<Vec<_>>();
    assert_eq!(images(&shown), images(&catalog));
}

fn keyed() -> Catalog {
    let keys = |ids: &[&str]| ids.iter().map(|id| id.parse().unwrap()).collect::<Vec<KeyId>>();
    let keys = [("a", keys(&["k1", "k2"])), ("b", keys(&["k3", "k1"])), ("c", keys(&[]))];
    catalog().with_keys(keys.map(|(name, keys)| (region(name), keys)).into())
}

#[test]
fn each_image_is_encrypted_under_a_key_of_its_own_region() {
    let mut made = 0;
    let mut key_of = |source: Option<&str>, asked: Option<&str>, to: &str| {
        let mut catalog = keyed();
        change(&mut catalog, "a/s1", |image| image.key = source.map(str::to_owned));
        made += 1;
        let mut order = order("a/s1", &format!("{to}/t"));
        order.rules = Rules::BAIDU;
        order.key = asked.map(str::to_owned);
        let told = catalog.start(&caller("p"), &order, &[fresh(made)], NOW);
        told.map(|_| catalog.image(&region(to), &"t".parse().unwrap()).unwrap().key.clone())
            .map_err(|refusal| refusal.name())
    };
    let under = |key: &str| Ok(Some(key.to_owned()));
    assert_eq!(key_of(None, None, "b"), Ok(None));
    assert_eq!(key_of(None, Some("k1"), "b"), under("k1"));
    assert_eq!(key_of(None, Some(""), "b"), under("k3"), "the first of its region");
    assert_eq!(key_of(Some("k2"), Some(""), "b"), under("k3"));
    assert_eq!(key_of(None, Some("k2"), "b"), Err("no_key"), "a key of another region");
    assert_eq!(key_of(None, Some("../k"), "b"), Err("no_key"));
    for asked in ["", "k1"] {
        assert_eq!(key_of(None, Some(asked), "c"), Err("no_keys"));
    }
    // What is encrypted stays so.
    assert_eq!(key_of(Some("k1"), None, "b"), under("k1"));
    assert_eq!(key_of(Some("k2"), None, "b"), Err("encrypted_elsewhere"));
    assert_eq!(key_of(Some("k1"), None, "c"), Err("encrypted_elsewhere"));
}

#[test]
fn a_list_of_targets_gives_each_image_its_own_key_or_starts_nothing() {
    let mut catalog = keyed();
    let mut order = order("a/s1", "b/t");
    order.rules = Rules::HUAWEI_IN_REGION;
    order.key = Some(String::new());
    order.targets = vec![end("a/t"), end("b/t")];
    catalog.start(&caller("p"), &order, &[fresh(1), fresh(2)], NOW).unwrap();
    let key = |at: &str| catalog.image(&end(at).region, &end(at).image).unwrap().key.clone();
    assert_eq!((key("a/t").as_deref(), key("b/t").as_deref()), (Some("k1"), Some("k3")));
    order.targets = vec![end("b/u"), end("c/u")];
    order.name = "other".into();
    catalog.take_changes();
    let told = catalog.start(&caller("p"), &order, &[fresh(3), fresh(4)], NOW);
    assert_eq!(refused(told), "no_keys");
    assert!(catalog.take_changes().is_empty());
}

#[test]
fn what_clouds_refuse_of_encrypted_images() {
    let check = |rules: Rules, asked: Option<&str>, to: &str, who: &str, bytes: u64| {
        let mut catalog = keyed();
        change(&mut catalog, "a/s1", |image| {
            image.key = Some("k1".into());
            image.shared_with.insert("q".into());
            image.image_bytes = bytes;
        });
        let mut order = order("a/s1", to);
        (order.rules, order.key) = (rules, asked.map(str::to_owned));
        catalog.check(&caller(who), &order).map_or_else(|refusal| refusal.name(), |_| "fine")
    };
    let (near, far) = (Rules::HUAWEI_IN_REGION, Rules::HUAWEI_CROSS_REGION);
    assert_eq!(check(near, None, "a/t", "p", 1), "fine", "the same key, for nobody asks");
    assert_eq!(check(near, Some("k2"), "a/t", "p", 1), "fine");
    assert_eq!(check(near, Some("k1"), "a/t", "p", 1), "same_key");
    assert_eq!(check(far, None, "b/t", "p", 1), "encrypted_elsewhere");
    assert_eq!(check(far, Some("k3"), "b/t", "p", 1), "encrypted_elsewhere");
    assert_eq!(check(near, Some("k2"), "a/t", "p", 128 << 30), "fine");
    assert_eq!(check(near, Some("k2"), "a/t", "p", (128 << 30) + 1), "encrypted_too_large");
    assert_eq!(check(near, Some("k2"), "a/t", "q", 1), "shared_encrypted");
    assert_eq!(check(Rules::ALIBABA, Some("k1"), "a/t", "q", 1), "shared_encrypted");
    assert_eq!(check(Rules::ALIBABA, Some("k1"), "b/t", "p", 1 << 40), "fine");
    assert_eq!(check(Rules::ALIBABA, None, "b/t", "p", 1), "fine");
    assert_eq!(check(Rules::ALIBABA, None, "a/t", "p", 1), "same_region");
    assert_eq!(check(Rules::ALIBABA, Some("k2"), "a/t", "p", 1), "fine");
}
