//! What a vendor's compiler cannot compile, read from naga's module.

use naga::{
    Block, Expression, Function, Handle, Module, Statement, TypeInner,
    valid::{FunctionInfo, ModuleInfo},
};
use std::collections::HashSet;

/// `function.variable` of every vector whose component is stored by an index that is no constant, inside a loop or in a function
/// that a loop calls: FXC can compile such a store only by unrolling all loops around it, and gives up (X3511) where
/// the length of one depends on data.
pub fn vectors_written_by_index(module: &Module, info: &ModuleInfo, entry: &str) -> Vec<String> {
    let entries = &module.entry_points;
    let at = entries.iter().position(|e| e.name == entry).expect("it has been validated");
    let mut walk = Walk { module, info, seen: HashSet::new(), found: Vec::new() };
    let function = &entries[at].function;
    walk.block(&function.body, &Inside { function, info: info.get_entry_point(at), name: entry }, false);
    walk.found
}

struct Inside<'a> {
    function: &'a Function,
    info: &'a FunctionInfo,
    name: &'a str,
}

struct Walk<'a> {
    module: &'a Module,
    info: &'a ModuleInfo,
    seen: HashSet<(Handle<Function>, bool)>,
    found: Vec<String>,
}

impl Walk<'_> {
    fn block(&mut self, block: &Block, inside: &Inside, in_loop: bool) {
        for statement in block {
            match statement {
                Statement::Block(block) => self.block(block, inside, in_loop),
                Statement::If { accept, reject, .. } => {
                    self.block(accept, inside, in_loop);
                    self.block(reject, inside, in_loop);
                }
                Statement::Switch { cases, .. } => {
                    for case in cases {
                        self.block(&case.body, inside, in_loop);
                    }
                }
                Statement::Loop { body, continuing, .. } => {
                    self.block(body, inside, true);
                    self.block(continuing, inside, true);
                }
                Statement::Call { function, .. } if self.seen.insert((*function, in_loop)) => {
                    let called = &self.module.functions[*function];
                    let name = called.name.as_deref().unwrap_or("a function");
                    let info = &self.info[*function];
                    self.block(&called.body, &Inside { function: called, info, name }, in_loop);
                }
                Statement::Store { pointer, .. } if in_loop => self.store(*pointer, inside),
                _ => {}
            }
        }
    }

    fn store(&mut self, pointer: Handle<Expression>, inside: &Inside) {
        let expressions = &inside.function.expressions;
        let Expression::Access { base, index } = expressions[pointer] else { return };
        let types = &self.module.types;
        let is_vector = match *inside.info[base].ty.inner_with(types) {
            TypeInner::Pointer { base, .. } => matches!(types[base].inner, TypeInner::Vector { .. }),
            TypeInner::ValuePointer { size, .. } => size.is_some(),
            _ => false,
        };
        if is_vector && !matches!(expressions[index], Expression::Literal(_) | Expression::Constant(_)) {
            self.found.push(format!("{}.{}", inside.name, self.variable(base, inside)));
        }
    }

    fn variable(&self, mut pointer: Handle<Expression>, inside: &Inside) -> String {
        loop {
            let name = match inside.function.expressions[pointer] {
                Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => {
                    pointer = base;
                    continue;
                }
                Expression::LocalVariable(variable) => inside.function.local_variables[variable].name.clone(),
                Expression::GlobalVariable(variable) => self.module.global_variables[variable].name.clone(),
                Expression::FunctionArgument(number) => inside.function.arguments[number as usize].name.clone(),
                _ => None,
            };
            return name.unwrap_or_else(|| "a vector".to_owned());
        }
    }
}

#[test]
fn indexed_writes_are_found_in_loops_and_in_what_they_call() {
    let source = "
        @group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;
        fn called(i: u32) -> vec4<f32> { var inner: vec4<f32>; inner[i] = 1.0; return inner; }
        @compute @workgroup_size(1) fn main(@builtin(local_invocation_index) i: u32) {
            var before: vec4<f32>;
            before[i] = 1.0;
            var many: array<vec4<f32>, 2>;
            var plain: array<f32, 4>;
            for (var k = 0u; k < i; k++) { many[k][i] = 1.0; many[k] = before; plain[k] = 1.0; before[2] = 1.0; y[k] = called(k); y[k][i] = 1.0; }
            y[0] = before * many[1] * plain[0];
        }
        @compute @workgroup_size(1) fn other() { y[0] = called(0u); }";
    let module = naga::front::wgsl::parse_str(source).unwrap();
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), Default::default());
    let info = validator.validate(&module).unwrap();
    assert_eq!(vectors_written_by_index(&module, &info, "main"), ["main.many", "called.inner", "main.y"]);
    assert!(vectors_written_by_index(&module, &info, "other").is_empty());
}
