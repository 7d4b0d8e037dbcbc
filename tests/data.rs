//! Training data: chats and answer masks against transformers, batches, and what is said about rows that cannot be used.
#![cfg(all(feature = "parquet", feature = "tokenizer"))]

#[path = "support/text.rs"]
mod text;

use std::fs;
use std::path::Path;

use fourbit::data::{Batch, DataLoader, DataOptions, Dataset, Example, IGNORE, LoaderOptions, MASKED, Row};
use fourbit::tokenizer::{ChatContext, Message, Tokenizer};
use fourbit::{Error, Result};
use serde_json::json;
use text::{chat_tokenizer, chatml, file, folder, golden, numbers, vocab};

fn options() -> DataOptions {
    DataOptions::new(1024, 1000)
}

#[test]
fn chats_and_answer_masks_are_those_of_transformers() {
    let golden = golden();
    for case in golden["chats"].as_array().unwrap() {
        let t = chat_tokenizer(&golden, case);
        let name = case["name"].as_str().unwrap();
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        assert_eq!(t.apply_chat_template(&messages, false).unwrap(), case["text"].as_str().unwrap(), "{name}");
        let prompt = t.apply_chat_template(&messages[..messages.len() - 1], true).unwrap();
        assert_eq!(prompt, case["prompt"].as_str().unwrap(), "{name}");
        let set = Dataset::from_rows(&[Row::Chat(messages.clone().into())], Some(&t), &options()).unwrap();
        let example = &set.example(0).unwrap();
        assert_eq!(example.input_ids, numbers(&case["ids"]), "{name}");
        let learned: Vec<u32> = example.labels.iter().map(|&l| (l != IGNORE) as u32).collect();
        assert_eq!(learned, numbers(&case["mask"]), "{name}: {}", case["text"]);
        let kept = |(&label, &id): (&i32, &u32)| label == IGNORE || label == id as i32;
        assert!(example.labels.iter().zip(&example.input_ids).all(kept));

        // The completion of a prompt is the same conversation with its last answer learned.
        let (prompt, completion) = messages.split_at(messages.len() - 1);
        let row = Row::ChatCompletion {
            prompt: prompt.to_vec(),
            completion: completion.to_vec(),
            context: ChatContext::default(),
        };
        let last = Dataset::from_rows(&[row], Some(&t), &options()).unwrap();
        let last = &last.example(0).unwrap();
        assert_eq!(last.input_ids, example.input_ids);
        let begin = example.labels.iter().rposition(|&l| l != IGNORE).unwrap();
        let begin = begin - example.labels[..begin].iter().rev().take_while(|&&l| l != IGNORE).count();
        assert!(last.labels[..begin].iter().all(|&l| l == IGNORE), "{name}");
        assert_eq!(last.labels[begin..], example.labels[begin..], "{name}");
    }
}

#[test]
fn texts_in_a_chat_layout_become_conversations_in_the_models_template() {
    let t = chatml();
    let dir = folder();
    let rows = [
        json!({"text": "### Human: Hello### Assistant: Hi there### Human: cats?### Assistant: 3 cats"}),
        json!({"text": "<s>[INST] Hello [/INST] Hi there </s><s>[INST] cats? [/INST] 3 cats </s>"}),
        json!({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"},
                            {"role": "user", "content": [{"type": "text", "text": "cats?"}]},
                            {"role": "assistant", "content": "3 cats"}]}),
    ];
    let lines: String = rows.iter().map(|r| format!("{r}\n\n")).collect();
    for (name, text) in [("rows.jsonl", lines), ("rows.json", json!(rows).to_string())] {
        let set = Dataset::load(file(dir.path(), name, &text), Some(&t), &options()).unwrap();
        assert_eq!(set.len(), 3);
        assert_eq!(set.example(0).unwrap(), set.example(1).unwrap());
        assert_eq!(set.example(0).unwrap(), set.example(2).unwrap());
        assert!(
            t.decode(&set.example(0).unwrap().input_ids, false)
                .unwrap()
                .contains("<|im_start|>user\ncats?<|im_end|>\n")
        );
    }
}

#[test]
fn plain_texts_and_completions_end_with_eos() {
    let golden = golden();
    let mut v = vocab(&golden, "sentencepiece");
    (v.bos, v.eos) = (Some(1), Some(2));
    let t = Tokenizer::from_gguf(&v, "golden").unwrap();
    let rows = [
        Row::Text("the cat sees".into()),
        Row::Text("the cat sees</s>".into()),
        Row::Completion { prompt: "the cat".into(), completion: " sees".into() },
    ];
    let set = Dataset::from_rows(&rows, Some(&t), &options()).unwrap();
    let examples: Vec<Example> = set.iter().map(Result::unwrap).collect();
    let [text, ended, completion] = &examples[..] else { panic!("three rows") };
    assert_eq!((text.input_ids.first(), text.input_ids.last()), (Some(&1), Some(&2)));
    assert_eq!(text, ended);
    assert!(text.labels.iter().zip(&text.input_ids).all(|(&l, &id)| l == id as i32));
    assert_eq!(completion.input_ids, text.input_ids);
    let learned: Vec<u32> = completion.labels.iter().filter(|&&l| l != IGNORE).map(|&l| l as u32).collect();
    assert_eq!(t.decode(&learned, false).unwrap(), "sees</s>");
    // Without completion_only the prompt is learned as well.
    let whole = Dataset::from_rows(&rows, Some(&t), &DataOptions { completion_only: false, ..options() }).unwrap();
    assert_eq!(whole.example(2).unwrap(), whole.example(0).unwrap());
}

#[test]
fn labels_of_a_row_are_used_untouched() {
    let dir = folder();
    let rows = "{\"input_ids\":[5,6,7,8],\"labels\":[-100,1,-100,2]}\n\
                {\"input_ids\":[9,9],\"labels\":[3,4],\"attention_mask\":[1,0]}\n";
    let set = Dataset::load(file(dir.path(), "t.jsonl", rows), None, &options()).unwrap();
    let first = Example { input_ids: vec![5, 6, 7, 8], labels: vec![-100, 1, -100, 2], attention_mask: None };
    assert_eq!(set.example(0).unwrap(), first);
    let examples: Vec<Example> = set.iter().map(Result::unwrap).collect();
    let examples: Vec<&Example> = examples.iter().collect();
    let batch = Batch::collate(&examples, 42);
    assert_eq!((batch.batch, batch.seq_len, batch.predicted(), batch.tokens()), (2, 4, 3, 5));
    assert_eq!(batch.input_ids, [5, 6, 7, 8, 9, 9, 42, 42]);
    assert_eq!(batch.labels, [-100, 1, -100, 2, 3, 4, -100, -100]);
    assert_eq!(batch.attention_mask, [1, 1, 1, 1, 1, 0, 0, 0]);
    // What fills up has no segment; what a row masks has its own, marked.
    assert_eq!(batch.segment_ids, [1, 1, 1, 1, 1, 1 | MASKED, 0, 0]);
    assert_eq!(batch.position_ids, [0, 1, 2, 3, 0, 1, 0, 0]);
    let wider = batch.padded_to(5, 42).unwrap();
    assert_eq!(wider.input_ids, [5, 6, 7, 8, 42, 9, 9, 42, 42, 42]);
    assert_eq!(wider.predicted(), batch.predicted());
    assert!(matches!(batch.padded_to(3, 0), Err(Error::Shape { .. })));
}

#[test]
fn long_rows_are_cut_and_rows_without_labels_left_out() {
    let tokens = |n: u32, labels: Vec<i32>| Row::Tokens { input_ids: (0..n).collect(), labels, attention_mask: None };
    let rows =
        [tokens(3, vec![0, 1, 2]), tokens(6, vec![-100, -100, -100, -100, 4, 5]), tokens(5, vec![0, 1, 2, 3, 4])];
    let load = |max| Dataset::from_rows(&rows, None, &DataOptions { max_seq_length: max, ..options() });
    let set = load(4).unwrap();
    assert_eq!((set.len(), set.truncated(), set.skipped(), set.longest(), set.tokens()), (2, 2, 1, 4, 7));
    let set = load(6).unwrap();
    assert_eq!((set.len(), set.truncated(), set.skipped()), (3, 0, 0));
    assert!(matches!(load(1), Err(Error::Config { .. })));
    let e = Dataset::from_rows(&rows[1..2], None, &DataOptions { max_seq_length: 4, ..options() }).unwrap_err();
    assert!(e.to_string().contains("max_seq_length"), "{e}");
}

fn numbered(n: u32) -> Dataset {
    let row = |i: u32| Row::Tokens { input_ids: vec![i, i], labels: vec![i as i32; 2], attention_mask: None };
    Dataset::from_rows(&(0..n).map(row).collect::<Vec<_>>(), None, &options()).unwrap()
}

#[test]
fn batches_follow_the_file_or_the_seed() {
    let loader = |shuffle, seed| {
        DataLoader::new(numbered(5), LoaderOptions { batch_size: 2, shuffle, seed, ..LoaderOptions::default() })
            .unwrap()
    };
    let rows = |loader: DataLoader, n| {
        loader
            .take(n)
            .map(Result::unwrap)
            .flat_map(|b| b.input_ids.chunks(2).map(|r| r[0]).collect::<Vec<_>>())
            .collect::<Vec<u32>>()
    };
    assert_eq!(rows(loader(false, 0), 5), [0, 1, 2, 3, 4, 0, 1, 2, 3], "an epoch's last batch is what is left of it");
    let shuffled = rows(loader(true, 7), 6);
    assert_eq!(shuffled, rows(loader(true, 7), 6));
    assert_ne!(shuffled, rows(loader(true, 8), 6));
    for epoch in shuffled.chunks(5) {
        let mut seen = epoch.to_vec();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }
    assert_ne!(shuffled[..5], shuffled[5..10]);
    // Going on from a position gives what an unbroken run gives.
    let mut resumed = loader(true, 7);
    resumed.seek(7);
    assert_eq!(rows(resumed, 2), shuffled[7..]);
    let mut counting = loader(true, 7);
    counting.next_batch().unwrap();
    assert_eq!((counting.position(), counting.epoch(), counting.batches_per_epoch()), (2, 1.0 / 3.0, 3));
    let mut steps = loader(false, 0);
    let mut step = || (steps.next_step(2).unwrap().iter().map(|b| b.batch).collect::<Vec<_>>(), steps.epoch());
    assert_eq!([step(), step(), step()], [(vec![2, 2], 2.0 / 3.0), (vec![1], 1.0), (vec![2, 2], 1.0 + 2.0 / 3.0)]);
    assert_eq!([1, 2, 3, 16].map(|accumulation| loader(false, 0).steps_per_epoch(accumulation)), [3, 2, 1, 1]);
    let bad = DataLoader::new(numbered(1), LoaderOptions { batch_size: 0, ..LoaderOptions::default() });
    assert!(matches!(bad, Err(Error::Config { .. })));
}

#[test]
fn packed_rows_keep_their_examples_apart() {
    let row = |ids: &[u32]| Row::Tokens {
        input_ids: ids.to_vec(),
        labels: ids.iter().map(|&i| i as i32).collect(),
        attention_mask: None,
    };
    let rows = [row(&[1, 2, 3]), row(&[4, 5, 6, 7, 8]), row(&[9, 10])];
    let set = Dataset::from_rows(&rows, None, &options()).unwrap();
    let options = LoaderOptions { batch_size: 2, shuffle: false, packing: Some(6), ..LoaderOptions::default() };
    let mut loader = DataLoader::new(set, options).unwrap();
    assert_eq!((loader.rows_per_epoch(), loader.longest()), (2, 5));
    let batch = loader.next_batch().unwrap();
    assert_eq!(batch.input_ids, [1, 2, 3, 9, 10, 4, 5, 6, 7, 8]);
    assert_eq!(batch.labels, [1, 2, 3, -100, 10, 4, 5, 6, 7, 8]);
    assert_eq!(batch.segment_ids, [1, 1, 1, 2, 2, 1, 1, 1, 1, 1]);
    assert_eq!(batch.position_ids, [0, 1, 2, 0, 1, 0, 1, 2, 3, 4]);
    assert_eq!(batch.predicted(), 7);
}

#[test]
fn parquet_rows_are_read() {
    let same = [
        Row::Chat(vec![Message::new("user", "Hello 🙂"), Message::new("assistant", "Hi there")].into()),
        Row::Chat(vec![Message::new("user", "cats?"), Message::new("assistant", "3 cats")].into()),
    ];
    let same = Dataset::from_rows(&same, Some(&chatml()), &options()).unwrap();
    // snappy, zstd (polars' default) and brotli
    for name in ["chats", "chats.zstd", "chats.brotli"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.parquet"));
        assert_eq!(Dataset::load(&path, Some(&chatml()), &options()).unwrap(), same, "{name}");
    }
}

#[test]
fn damaged_parquet_is_an_error() {
    let whole = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chats.parquet")).unwrap();
    let dir = folder();
    let load = |bytes: &[u8]| {
        let path = dir.path().join("p.parquet");
        fs::write(&path, bytes).unwrap();
        Dataset::load(&path, Some(&chatml()), &options())
    };
    for cut in [4, 8, whole.len() / 2, whole.len() - 1] {
        assert!(matches!(load(&whole[..cut]), Err(Error::Format { .. })), "cut at {cut}");
    }
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for at in (4..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        // Many places change only a text; none may end the program.
        drop(load(&bytes));
    }
    std::panic::set_hook(quiet);
}

fn data_error(result: Result<Dataset>) -> (usize, String) {
    match result.unwrap_err() {
        Error::Data { row, message, .. } => (row, message),
        other => panic!("expected Error::Data, got {other:?}"),
    }
}

#[test]
fn rows_that_cannot_be_used_are_named() {
    let dir = folder();
    let t = chatml();
    let good = r#"{"text":"cat"}"#;
    let load = |rows: &str| data_error(Dataset::load(file(dir.path(), "d.jsonl", rows), Some(&t), &options()));
    let cases = [
        ("".to_string(), 1, "no rows"),
        (format!("{good}\n\n{{\"question\":1}}"), 3, "[question]"),
        (format!("{good}\nnot json"), 2, "JSON"),
        (format!("{good}\n{{\"input_ids\":[1,2],\"labels\":[1]}}"), 2, "expected 2 entries"),
        ("{\"input_ids\":[1,2],\"labels\":[1,1000]}".to_string(), 1, "1000 is outside the vocabulary"),
        ("{\"input_ids\":[1,2],\"labels\":[1,-1]}".to_string(), 1, "-1 is outside the vocabulary"),
        ("{\"input_ids\":[1,1000],\"labels\":[1,2]}".to_string(), 1, "1000 is outside the vocabulary"),
        ("{\"input_ids\":[],\"labels\":[]}".to_string(), 1, "at least one token"),
        ("{\"input_ids\":[1,2],\"labels\":[1,2],\"attention_mask\":[1,2]}".to_string(), 1, "0 or 1"),
        ("{\"messages\":[{\"role\":\"user\"}]}".to_string(), 1, "messages[0]"),
    ];
    for (rows, row, words) in cases {
        let (at, message) = load(&rows);
        assert_eq!(at, row, "{rows}: {message}");
        assert!(message.contains(words), "{rows}: {message}");
    }
    let text = Dataset::load(file(dir.path(), "d.jsonl", good), None, &options());
    assert!(data_error(text).1.contains("tokenizer.json"));
    assert!(matches!(Dataset::load(dir.path().join("none"), None, &options()), Err(Error::Io { .. })));
    fs::write(dir.path().join("binary"), [0xff, 0xfe, 0]).unwrap();
    assert!(data_error(Dataset::load(dir.path().join("binary"), None, &options())).1.contains("UTF-8"));
}

#[test]
fn a_templates_refusal_names_the_row() {
    let golden = golden();
    let case = golden["chats"].as_array().unwrap().iter().find(|c| c["name"] == "llama2").unwrap();
    let t = chat_tokenizer(&golden, case);
    let twice = vec![Message::new("user", "a"), Message::new("user", "b"), Message::new("assistant", "c")];
    let twice = Row::Chat(twice.into());
    let (row, message) = data_error(Dataset::from_rows(&[Row::Text("a".into()), twice], Some(&t), &options()));
    assert_eq!(row, 2);
    assert!(message.contains("take turns"), "{message}");
}

/// The byte-level vocabulary with a template that ends turns with `<|im_end|>`.
fn tokenizer(template: &str) -> Tokenizer {
    let mut v = vocab(&golden(), "byte_level");
    (v.bos, v.eos) = (Some(0), Some(2));
    v.chat_templates = vec![("default".to_owned(), template.into())];
    Tokenizer::from_gguf(&v, "golden").unwrap()
}

/// What is learned of one row, a text for each part.
fn learned_of(t: &Tokenizer, row: &serde_json::Value) -> Result<Vec<String>> {
    let dir = folder();
    let set = Dataset::load(file(dir.path(), "r.jsonl", &row.to_string()), Some(t), &options())?;
    let example = set.example(0)?;
    let parts = example.labels.split(|&l| l == IGNORE).filter(|part| !part.is_empty());
    parts.map(|part| t.decode(&part.iter().map(|&l| l as u32).collect::<Vec<_>>(), false)).collect()
}

const CHATML: &str = "{% if tools %}{{ 'TOOLS ' + (tools | tojson) + '\n' }}{% endif %}{% for d in documents or [] %}{{ d.title }}{% endfor %}\
    {{ mood if mood is defined }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn tools_documents_and_variables_of_a_row_reach_the_template() {
    let t = tokenizer(CHATML);
    let dir = folder();
    let text = |row: serde_json::Value| {
        let set = Dataset::load(file(dir.path(), "r.jsonl", &row.to_string()), Some(&t), &options())?;
        t.decode(&set.example(0).unwrap().input_ids, false)
    };
    let turns = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]);
    let tools = json!([{"type": "function", "function": {"name": "w", "parameters": {}}}]);
    let chat = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n";
    let listed = format!("TOOLS {}\n{chat}", r#"[{"type": "function", "function": {"name": "w", "parameters": {}}}]"#);
    for value in [tools.clone(), json!(tools.to_string())] {
        assert_eq!(text(json!({"messages": turns, "tools": value})).unwrap(), listed);
        let (prompt, completion) = (json!([turns[0]]), json!([turns[1]]));
        assert_eq!(text(json!({"prompt": prompt, "completion": completion, "tools": value})).unwrap(), listed);
    }
    let row = json!({"messages": turns, "tools": null, "documents": [{"title": "T", "text": "x"}], "chat_template_kwargs": {"mood": "M"}});
    assert_eq!(text(row).unwrap(), format!("TM{chat}"));
    let cases = [
        (json!({"messages": turns, "tools": "w"}), "tools: expected JSON"),
        (json!({"messages": turns, "tools": ["w"]}), "tools: expected a list of objects"),
        (json!({"messages": turns, "documents": {"title": "T"}}), "documents: expected a list of objects"),
        (json!({"messages": turns, "chat_template_kwargs": [1]}), "chat_template_kwargs: expected an object"),
        (json!({"messages": turns, "chat_template_kwargs": {"messages": []}}), "messages cannot be set here"),
    ];
    for (row, words) in cases {
        let (_, message) =
            data_error(Dataset::load(file(dir.path(), "r.jsonl", &row.to_string()), Some(&t), &options()));
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn weight_and_train_switch_turns_off() {
    let marked = CHATML.replace(
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\
         {% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}",
    );
    let row = |first: serde_json::Value, user: serde_json::Value| {
        let mut turns = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"},
                               {"role": "user", "content": "R"}, {"role": "assistant", "content": "B", "weight": 1, "train": true}]);
        turns[1].as_object_mut().unwrap().extend(first.as_object().unwrap().clone());
        turns[0].as_object_mut().unwrap().extend(user.as_object().unwrap().clone());
        json!({"messages": turns})
    };
    for template in [CHATML, &marked] {
        let t = tokenizer(template);
        let parts = |first, user| learned_of(&t, &row(first, user));
        assert_eq!(parts(json!({}), json!({})).unwrap(), ["A<|im_end|>", "B<|im_end|>"]);
        for off in [json!({"weight": 0}), json!({"train": false}), json!({"weight": 0.0, "train": true})] {
            assert_eq!(parts(off, json!({"weight": 0})).unwrap(), ["B<|im_end|>"]);
        }
        for (first, user, words) in [
            (json!({"weight": 0.5}), json!({}), "messages[1]: weight: expected 0 or 1"),
            (json!({"train": "no"}), json!({}), "messages[1]: train: expected"),
            (json!({}), json!({"train": true}), "messages[0]: weight and train: a turn of user"),
        ] {
            let message = parts(first, user).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}

#[test]
fn rows_of_other_programs_are_read_or_named() {
    let t = tokenizer(CHATML);
    let expected = ["Yes.<|im_end|>"];
    let roles = [("human", "gpt"), ("user", "model"), ("user", "bot"), ("human", "assistant")];
    for (asks, answers) in roles {
        let row = json!({"messages": [{"role": asks, "content": "Q"}, {"role": answers, "content": "Yes."}]});
        assert_eq!(learned_of(&t, &row).unwrap(), expected, "{asks}, {answers}");
        let row =
            json!({"system": "S", "conversations": [{"from": asks, "value": "Q"}, {"from": answers, "value": "Yes."}]});
        assert_eq!(learned_of(&t, &row).unwrap(), expected, "{asks}, {answers}");
    }
    let dir = folder();
    let load = |text: &str| Dataset::load(file(dir.path(), "r.json", text), Some(&t), &options());
    let text = |row: serde_json::Value| {
        let set = load(&row.to_string()).unwrap();
        t.decode(&set.example(0).unwrap().input_ids, false).unwrap()
    };
    let alpaca =
        json!({"instruction": "Add.", "input": "1, 2", "output": "3", "history": [["Hi", "Hello"]], "system": "S"});
    assert_eq!(
        text(alpaca),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n\
         <|im_start|>user\nAdd.\n\n1, 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    );
    assert!(text(json!({"instruction": "Add.", "input": "", "output": "3"})).contains("user\nAdd.<|im_end|>"));
    // An array behind a byte order mark, with blanks before it.
    let rows = json!([{"text": "cat"}, {"text": "dog"}]);
    assert_eq!(load(&format!("\u{feff} \n{rows}")).unwrap().len(), 2);
    let refused = [
        (json!({"prompt": "a", "chosen": "b", "rejected": "c"}), "preference row (chosen, rejected)"),
        (json!({"prompt": "a", "completion": "b", "label": true}), "preference row (prompt, completion, label)"),
        (json!({"prompt": "a", "completions": ["b"], "labels": [true]}), "stepwise supervision"),
        (
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}]}),
            "from function_call",
        ),
        (json!({"messages": [{"role": "user", "content": "a"}]}), "no turn of the role assistant"),
    ];
    for (row, words) in refused {
        let (_, message) = data_error(load(&row.to_string()));
        assert!(message.contains(words) && !message.contains("max_seq_length"), "{message}");
    }
}

/// Layouts like those of published models, each with what makes it hard to tell an answer from what stands around it.
#[test]
fn answers_are_found_in_layouts_that_hide_them() {
    let user = |text: &str| json!({"role": "user", "content": text});
    let said = |text: &str| json!({"role": "assistant", "content": text});
    let called = |text: &str| {
        json!({"role": "assistant", "content": text, "tool_calls": [{"id": "c1", "type": "function",
               "function": {"name": "look", "arguments": {"at": "sea"}}}]})
    };
    let tool = json!({"role": "tool", "content": "wet"});
    // The header of the next answer is always there.
    let headed = "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}\
                  {% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}";
    let t = tokenizer(headed);
    let row = json!({"messages": [user("a"), said(" b "), user("c"), said("d")]});
    assert_eq!(learned_of(&t, &row).unwrap(), ["b<|eot_id|>", "d<|eot_id|>"]);
    // Its template knows no calls: a turn that is nothing else is not passed over.
    let message = learned_of(&t, &json!({"messages": [user("a"), called(""), said("d")]})).unwrap_err().to_string();
    assert!(message.contains("messages[1]: its text is not in the conversation"), "{message}");
    // The last answer is written with an empty thought, and the calls of others without.
    let thinking = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}\
                    {{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content }}{% for c in m.tool_calls %}{{ '<tool_call>\n{\"name\": \"' + \
                    c.function.name + '\", \"arguments\": ' + c.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}\
                    {{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let t = tokenizer(thinking);
    let call = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"sea\"}}\n</tool_call><|im_end|>";
    let last = "<think>\n\n</think>\n\nb<|im_end|>";
    let row = json!({"messages": [user("a"), called(""), tool, said("b")]});
    assert_eq!(learned_of(&t, &row).unwrap(), [call, last]);
    let row = json!({"messages": [user("a"), called("Well. "), tool, said("b")]});
    assert_eq!(learned_of(&t, &row).unwrap(), [&format!("Well. {call}"), last]);
    let row = json!({"messages": [user("a"), {"role": "assistant", "tool_calls": called("")["tool_calls"]}]});
    assert_eq!(learned_of(&t, &row).unwrap(), [format!("<think>\n\n</think>\n\n{call}")]);
    // An answer without text still ends.
    assert_eq!(learned_of(&t, &json!({"messages": [user("a"), said(""), user("b")]})).unwrap(), ["<|im_end|>"]);
    // Every answer ends with one token, the last with another.
    let returned = "{% for m in messages %}{{ '<|im_start|>' + m.content + ('<|end_header_id|>' if loop.last else '<|eot_id|>') }}{% endfor %}";
    let row = json!({"messages": [user("a"), said("b"), user("c"), said("d")]});
    assert_eq!(learned_of(&tokenizer(returned), &row).unwrap(), ["b<|eot_id|>", "d<|end_header_id|>"]);
    // The header of the next turn ends no answer.
    let bare = "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' + m.content + '\n' }}{% endfor %}\
                {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}{% endif %}";
    assert_eq!(learned_of(&tokenizer(bare), &row).unwrap(), ["b\n", "d\n"]);
    // The next turn's own end is not taken for that of an answer that has none.
    let open = "{{ messages | length }}{% for m in messages %}{{ m.content + ('<|im_end|>\n' if m.role == 'user' else ' ') }}{% endfor %}";
    let message =
        learned_of(&tokenizer(open), &json!({"messages": [user("a"), said("b"), user("c"), said("d")]})).unwrap_err();
    assert!(message.to_string().contains("its end is unknown"), "{message}");
}

/// The answers' tokens by a template over the byte-level vocabulary, each turn as text.
fn learned(template: &str, messages: &[Message]) -> Result<Vec<String>> {
    let mut v = vocab(&golden(), "byte_level");
    (v.bos, v.eos) = (Some(0), Some(2));
    v.chat_templates = vec![("default".to_owned(), template.into())];
    let t = Tokenizer::from_gguf(&v, "golden")?;
    let set = Dataset::from_rows(&[Row::Chat(messages.to_vec().into())], Some(&t), &options())?;
    let example = &set.example(0).unwrap();
    let runs = example.labels.split(|&l| l == IGNORE).filter(|run| !run.is_empty());
    runs.map(|run| t.decode(&run.iter().map(|&l| l as u32).collect::<Vec<_>>(), false)).collect()
}

#[test]
fn a_turn_is_learned_with_one_end_token() {
    let turns = |n: usize| -> Vec<Message> {
        (0..n)
            .flat_map(|i| [Message::new("user", format!("q{i}")), Message::new("assistant", format!("a{i}"))])
            .collect()
    };
    // A text end after the last turn's end is none of the answer's.
    let twice = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                 {{ '<|im_start|>assistant\n' if add_generation_prompt else '<|endoftext|>' }}";
    assert_eq!(learned(twice, &turns(2)).unwrap(), ["a0<|im_end|>", "a1<|im_end|>"]);
    // Without end tokens an answer ends with the conversation up to it.
    let plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}\
                 {{ 'assistant:' if add_generation_prompt }}";
    assert_eq!(learned(plain, &turns(2)).unwrap(), [" a0\n", " a1\n"]);
    // The head counts the messages, so nothing before a later turn stays as it was: found by the turn's text.
    let counted =
        "{{ messages | length }}{% for m in messages %}{{ '<|im_start|>' + m.content + '<|im_end|>\n' }}{% endfor %}";
    assert_eq!(learned(counted, &turns(2)).unwrap(), ["a0<|im_end|>", "a1<|im_end|>"]);
    // What the template makes of a text is learned, not the text.
    let rewritten = counted.replace("m.content", "m.content | upper");
    assert_eq!(learned(&rewritten, &turns(2)).unwrap(), ["A0<|im_end|>", "A1<|im_end|>"]);
    let dropped =
        counted.replace("'<|im_start|>' + m.content", "'<|im_start|>' + (m.content if m.role == 'user' else '')");
    let (row, message) = data_error(learned(&dropped, &turns(2)).map(|_| unreachable!("what was dropped was found")));
    assert!(row == 1 && message.contains("messages[1]"), "{message}");
}

#[test]
fn rows_beyond_the_limit_are_refused_in_each_format() {
    let dir = folder();
    let t = chatml();
    let limited = |max_row_bytes| DataOptions { max_row_bytes, ..options() };
    let long = json!({"text": "cat ".repeat(100)}).to_string();
    for (text, row) in [
        (format!("{{\"text\":\"cat\"}}\n\n{long}\n"), 3),
        (format!("[{{\"text\":\"cat\"}}, {long}]"), 2),
        (format!("{{\"text\":\"cat\"}}\n{}", "x".repeat(1 << 20)), 2),
    ] {
        let path = file(dir.path(), "r", &text);
        let (at, message) = data_error(Dataset::load(&path, Some(&t), &limited(400)));
        assert_eq!(at, row, "{message}");
        assert!(message.contains("more than the 400 that a row may have; raise `max_row_bytes`"), "{message}");
    }
    let path = file(dir.path(), "r", &format!("{long}\n{long}"));
    assert_eq!(Dataset::load(path, Some(&t), &limited(411)).unwrap().len(), 2);
    // What comes before is told first.
    let path = file(dir.path(), "r", &format!("{{\"a\":1}}\n{long}"));
    assert_eq!(data_error(Dataset::load(path, Some(&t), &limited(400))).0, 1);
    // Of Parquet a row, and what a page claims before it is unpacked.
    let chats = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chats.parquet");
    let (row, message) = data_error(Dataset::load(&chats, Some(&t), &limited(60)));
    assert!(row == 1 && message.contains("the row has"), "{message}");
    let (row, message) = data_error(Dataset::load(&chats, Some(&t), &limited(1)));
    assert!(
        row == 1 && message.contains("a page of ") && message.contains("more than 16 times the 1 bytes"),
        "{message}"
    );
    assert_eq!(Dataset::load(&chats, Some(&t), &limited(1000)).unwrap().len(), 2);
}

#[test]
fn the_first_bad_row_of_the_file_is_told_and_clones_share_their_rows() {
    let dir = folder();
    let good = "{\"input_ids\":[5,6],\"labels\":[5,6]}\n";
    let text = format!("{}{{\"input_ids\":[1],\"labels\":[]}}\n{}not json\n", good.repeat(5000), good.repeat(5000));
    let path = file(dir.path(), "r.jsonl", &text);
    for _ in 0..5 {
        assert_eq!(data_error(Dataset::load(&path, None, &options())).0, 5001);
    }
    let path = file(dir.path(), "r.jsonl", &good.repeat(3));
    let set = Dataset::load(&path, None, &options()).unwrap();
    assert_eq!(set.clone(), set);
    assert_ne!(set, Dataset::load(file(dir.path(), "s.jsonl", &good.repeat(2)), None, &options()).unwrap());
    assert!(matches!(set.example(3), Err(Error::Config { .. })));
    assert_eq!((set.iter().len(), set.iter().map(Result::unwrap).last()), (3, Some(set.example(0).unwrap())));
}

#[test]
fn reading_rows_stops_when_it_is_asked_to() {
    let options = options();
    options.cancel.request();
    let rows = vec![Row::Tokens { input_ids: vec![1, 2, 3], labels: vec![1, 2, 3], attention_mask: None }; 3];
    assert!(Dataset::from_rows(&rows, None, &options).is_ok(), "nothing is read");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, r#"{"input_ids": [1, 2, 3]}"#).unwrap();
    assert!(matches!(Dataset::load(&path, None, &options), Err(fourbit::Error::Interrupted(_))));
}
