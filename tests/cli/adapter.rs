//! `fourbit adapter combine`

use super::{Place, fourbit, golden};

#[test]
fn adapters_become_one_that_is_loaded() {
    let place = Place::new();
    let adapter = |name: &str| golden("../adapters").join(name).display().to_string();
    let (first, second, out) = (adapter("full-names"), adapter("gaussian"), place.text("both"));
    let weighted = [format!("{first}=0.7"), format!("{second}=-0.3")];
    let words = ["adapter", "combine", "--adapter", &weighted[0], "--adapter", &weighted[1], "--output", &out];
    let line = fourbit(&[&words[..], &["--json"]].concat()).json();
    assert_eq!((&line["r"], &line["layers"]), (&4.into(), &3.into()), "{line}");
    assert!(fourbit(&["verify", &out]).code == 0);
    let error = fourbit(&[&words[..], &["--svd-rank", "2"]].concat());
    assert!(error.error().starts_with("--svd-rank: goes with"), "{}", error.stderr);
    let missing = ["adapter", "combine", "--adapter", "nowhere=0.5", "--output", &out];
    assert!(fourbit(&missing).error().contains("nowhere"));
    let wrong = ["adapter", "combine", "--adapter", "a=b", "--output", &out];
    assert_eq!(fourbit(&wrong).code, 2);
}
