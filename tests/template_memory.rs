//! Templates that make much of little: none takes more memory than its bounds, and each is refused in our words.
//!
//! Each is harmless where nothing bounds it: some tens of megabytes.
#![cfg(feature = "tokenizer")]

use std::path::Path;
use std::sync::atomic::Ordering;

use counting::{ALIVE, PEAK};
use fourbit::tokenizer::{ChatContext, ChatTemplate, Message};

#[path = "support/counting.rs"]
mod counting;

/// What rendering gives, and the bytes that were alive at its peak beyond those at its start.
fn render(source: &str) -> (Result<String, String>, usize) {
    let template = ChatTemplate::new(source, Vec::new(), Path::new("t"));
    let start = ALIVE.load(Ordering::Relaxed);
    PEAK.store(start, Ordering::Relaxed);
    let text = template.and_then(|t| t.render(&[Message::new("user", "hello")], &ChatContext::default(), false));
    (text.map_err(|e| e.to_string()), PEAK.load(Ordering::Relaxed) - start)
}

/// `{% set %}` in a loop is seen behind it through a namespace alone.
fn doubled(first: &str, step: &str, times: usize) -> String {
    format!(
        "{{% set ns = namespace(x={first}) %}}{{% for i in range({times}) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x | length }}}}"
    )
}

const MIB: usize = 1 << 20;

// One test: the allocator counts those beside it too.
#[test]
fn no_template_takes_more_memory_than_its_bounds() {
    let text = "{% set t = 'abcdefghijklmnop' * 65536 %}";
    let with = |code: &str| format!("{text}{code}");
    let forms: Vec<(&str, String)> = vec![
        ("+ of texts", doubled("'abcdefghijklmnop'", "ns.x + ns.x", 21)),
        ("+ of lists", doubled("[1, 2, 3, 4]", "ns.x + ns.x", 18) + "{{ ns.x | list | length }}"),
        ("+ of tuples", doubled("(1, 2, 3, 4)", "ns.x + ns.x", 18)),
        ("~", doubled("'abcdefghijklmnop'", "ns.x ~ ns.x", 21)),
        ("a chain of +", with(&format!("{{{{ (t{}) | length }}}}", " + t".repeat(40)))),
        ("a chain of ~", with(&format!("{{{{ (t{}) | length }}}}", " ~ t".repeat(40)))),
        ("* of a text", "{{ ('abcdefghijklmnop' * 2000000) | length }}".into()),
        ("* of a list", "{{ ([1] * 1000000) | list | length }}".into()),
        ("* of a tuple", "{{ ((1, 2) * 500000) | length }}".into()),
        ("range", "{{ ((range(90000) | list) * 4) | list | length }}".into()),
        ("join filter", with("{{ ([t, t, t, t, t, t, t, t, t, t] * 3) | join | length }}")),
        ("join with a long separator", with("{{ range(30) | join(t) | length }}")),
        ("join method", with("{{ t.join(['a'] * 30) | length }}")),
        ("replace filter", with("{{ t | replace('a', 'x' * 500) | length }}")),
        ("replace method", with("{{ t.replace('a', 'x' * 500) | length }}")),
        ("indent", "{{ ('\\n' * 10000) | indent(3000) | length }}".into()),
        ("indent by name", "{{ ('\\n' * 10000) | indent(width=3000, blank=true) | length }}".into()),
        ("center", "{{ ['a'] * 5000 | map('center', 9000) | join | length }}".replace("['a'] * 5000", "(['a'] * 5000)")),
        ("ljust", "{{ 'a'.ljust(20000000) | length }}".into()),
        ("center method", "{{ 'a'.center(20000000) | length }}".into()),
        ("zfill", "{{ '1'.zfill(20000000) | length }}".into()),
        ("% widths", "{{ ('%9000d' * 3000 % ((1,) * 3000)) | length }}".into()),
        ("% of a width", "{{ ('%20000000d' % 1) | length }}".into()),
        ("format filter", "{{ '%20000000d' | format(1) | length }}".into()),
        ("format method", "{{ '{:>20000000}'.format(1) | length }}".into()),
        ("format method, width from an argument", "{{ '{:>{}}'.format(1, 20000000) | length }}".into()),
        ("batch", "{{ [1] | batch(1000000, 'x') | list | length }}".into()),
        ("slice filter", "{{ [1] | slice(1000000) | list | length }}".into()),
        ("list of a text", with("{{ t | list | length }}")),
        ("sort of a text", with("{{ t | sort | length }}")),
        ("map", with("{{ ([t] * 60) | map('upper') | list | length }}")),
        ("sum of texts", with("{{ ([t] * 30) | sum(start='') | length }}")),
        ("sum of lists", "{{ ([range(1000) | list] * 500) | sum(start=[]) | length }}".into()),
        ("split", with("{{ t.split('a') | length }}{% set u = t * 6 %}{{ u.split('a') | length }}")),
        ("splitlines", "{{ ('\\n' * 1000000).splitlines() | length }}".into()),
        ("slices that are kept", with(&doubled("[]", "ns.x + [t[1:]]", 80))),
        ("texts that are kept", with(&doubled("[]", "ns.x + [t ~ i]", 80))),
        ("texts that filters make", with(&doubled("[]", "ns.x + [t | upper]", 80))),
        ("texts that methods make", with(&doubled("[]", "ns.x + [t.title()]", 80))),
        ("repr of a shared list", doubled("['abcdefghijklmnop']", "[ns.x, ns.x]", 19) + "{{ ns.x | string | length }}"),
        ("printing a shared list", doubled("['abcdefghijklmnop']", "[ns.x, ns.x]", 19) + "{{ ns.x }}"),
        ("upper of a shared list", doubled("['abcdefghijklmnop']", "[ns.x, ns.x]", 19) + "{{ ns.x | upper | length }}"),
        ("~ of a shared dict", doubled("{'k': 'abcdefghijklmnop'}", "{'a': ns.x, 'b': ns.x}", 19) + "{{ ('' ~ ns.x) | length }}"),
        ("tojson of a shared list", doubled("['abcdefghijklmnop']", "[ns.x, ns.x]", 19) + "{{ ns.x | tojson | length }}"),
        ("tojson with an indent", "{{ range(9000) | list | tojson(indent='x' * 4000) | length }}".into()),
        ("tojson with separators", "{{ range(9000) | list | tojson(separators=('x' * 4000, ':')) | length }}".into()),
        ("set block", with("{% set c %}{% for i in range(60) %}{{ t }}{% endfor %}{% endset %}{{ c | length }}")),
        ("macro", with("{% macro m() %}{{ t }}{% endmacro %}{% set ns = namespace(x=[]) %}{% for i in range(80) %}{% set ns.x = ns.x + [m()] %}{% endfor %}")),
        ("call block", with("{% macro m() %}{{ caller() }}{% endmacro %}{% set c %}{% for i in range(45) %}{% call m() %}{{ t }}{% endcall %}{% endfor %}{% endset %}")),
        ("filter block", with("{% set c %}{% for i in range(45) %}{% filter upper %}{{ t }}{% endfilter %}{% endfor %}{% endset %}")),
        ("text of a loop in a set block", format!("{{% set c %}}{{% for i in range(60000) %}}{}{{% endfor %}}{{% endset %}}", "x".repeat(1000))),
        ("text of a macro", format!("{{% macro m() %}}{}{{% endmacro %}}{{% set c %}}{{% for i in range(60000) %}}{{{{ m() }}}}{{% endfor %}}{{% endset %}}", "x".repeat(1000))),
        ("lists in a loop", "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [[i, i, i, i, i, i, i, i, i, i]] %}{% endfor %}".into()),
    ];
    let mut highest = (0, "");
    for (name, source) in &forms {
        let (text, peak) = render(source);
        let error = text.map(|text| text.chars().take(60).collect::<String>()).expect_err(name);
        let ours = [
            "the most that a chat template may build",
            "all values together",
            "what it captures included",
            "too large",
        ];
        println!("{:6.1} MiB  {name}: {error}", peak as f64 / MIB as f64);
        assert!(ours.iter().any(|words| error.contains(words)), "{name}: {error}");
        highest = highest.max((peak, name));
    }
    println!("{} forms, at most {:.1} MiB ({})", forms.len(), highest.0 as f64 / MIB as f64, highest.1);
    assert!(highest.0 < 110 * MIB, "{highest:?}");

    // Depth takes stack where values are compared, sorted and dropped. A few hundred levels are harmless anywhere.
    let deep = |first: &str, step: &str| doubled(first, step, 300);
    for (name, source) in [
        ("lists", deep("[]", "[ns.x]")),
        ("tuples", deep("(1,)", "ns.x, 1")),
        ("dicts", deep("{}", "{'k': ns.x}")),
        ("keys of dicts", deep("(1,)", "({(ns.x,): 1}, 1)")),
        ("dict()", deep("{}", "dict(k=ns.x)")),
        ("batches", deep("[1]", "ns.x | batch(1) | list")),
        ("views", deep("{}", "{'k': ns.x}.items()")),
        ("namespaces", "{% set ns = namespace() %}{% set ns.x = ns %}".into()),
        ("namespaces in lists", "{% set ns = namespace() %}{% set ns.x = [ns] %}".into()),
        ("cyclers", "{% set x = cycler(1) %}{% set y = [x] %}".into()),
    ] {
        let error = render(&source).0.expect_err(name);
        let ours = ["nested deeper than 200 levels", "cannot be in another", "cannot hold a namespace"];
        assert!(ours.iter().any(|words| error.contains(words)), "{name}: {error}");
    }
    assert_eq!(render(&doubled("[]", "[ns.x]", 150)).0.as_deref(), Ok("1"));

    // What is within the bounds is written as ever.
    for (source, expected) in [
        ("{{ 'ab' * 3 + 'c' ~ 1 + '-' * (2 - 1) }}", "abababc1-"),
        ("{{ [1] * 2 + [3][0:] }}{{ (1,) + (2,) }}{{ 1 + 2 * 3 - 4.5 }}{{ -2 * -3 }}", "[1, 1, 3](1, 2)2.56"),
        ("{{ 'x'.ljust(4) ~ '%3d' % 5 ~ '{:>3}'.format(7) ~ ('%s-%s' | format(1, 2)) }}", "x     5  71-2"),
        ("{{ messages[0].content[1:3] + messages[::-1][0]['content'][-1] }}", "elo"),
    ] {
        assert_eq!(render(source).0.as_deref(), Ok(expected), "{source}");
    }
}
