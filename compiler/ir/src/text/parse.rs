//! Reading graphs.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::attributes::Fields;
use crate::elem::Elem;
use crate::error::IrError;
use crate::graph::{Graph, ValueId};
use crate::kernel::{Arg, KernelSpec};
use crate::ops::Op;
use crate::tensor::{ConstId, Tensor};
use crate::types::{Range, TensorType, checked_elements};

/// Reads a graph. `store` gives the data of constants written as `hash(...)`.
pub fn parse(text: &str, store: &BTreeMap<ConstId, Arc<Tensor>>) -> Result<Graph, IrError> {
    let mut reader =
        Reader { lines: text.lines().enumerate(), line: 0, graph: Graph::new(), values: Vec::new(), store };
    while let Some(line) = reader.next_line() {
        let result = reader.statement(line);
        result.map_err(|message| IrError::Parse { line: reader.line, message })?;
    }
    Ok(reader.graph)
}

/// Most elements of a constant written as text, so that a short line cannot ask for much memory.
const MAX_TEXT_ELEMENTS: usize = 1 << 26;

type Outcome<T> = Result<T, String>;

struct Reader<'a> {
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
    line: usize,
    graph: Graph,
    values: Vec<ValueId>,
    store: &'a BTreeMap<ConstId, Arc<Tensor>>,
}

/// `operands fields` of an operator, before its type.
struct Application<'a> {
    operands: Vec<&'a str>,
    fields: Fields,
}

impl<'a> Reader<'a> {
    /// The next line that is neither empty nor a `//` comment.
    fn next_line(&mut self) -> Option<&'a str> {
        for (index, line) in self.lines.by_ref() {
            self.line = index + 1;
            let line = line.trim();
            if !line.is_empty() && !line.starts_with("//") {
                return Some(line);
            }
        }
        None
    }

    fn statement(&mut self, line: &str) -> Outcome<()> {
        if let Some(rest) = line.strip_prefix("output ") {
            let (value, name) = rest.split_once(' ').ok_or("expected `output %n \"name\"`")?;
            let value = self.value(value)?;
            self.graph.output(unquote(name.trim())?, value);
            return Ok(());
        }
        let (target, rest) = line.split_once(" = ").ok_or("expected `%n = operator ...`")?;
        if target != format!("%{}", self.values.len()) {
            return Err(format!("expected `%{}`, found `{target}`", self.values.len()));
        }
        let (op, rest) = split_word(rest);
        let value = match op {
            "input" => {
                let (ty, name) = split_type(rest)?;
                self.graph.input(name, parse_type(ty)?).map_err(|e| e.to_string())?
            }
            "const" => {
                let (data, ty) = rest.rsplit_once(" : ").ok_or("expected `: type`")?;
                let tensor = self.constant(data.trim(), &parse_type(ty.trim())?)?;
                self.graph.constant(tensor)
            }
            "kernel" => self.kernel(rest, Op::Kernel)?,
            "second" => self.kernel(rest, Op::Second)?,
            _ => self.operator(op, rest)?,
        };
        if value.index() != self.values.len() {
            return Err("this constant is already there under another number".into());
        }
        self.values.push(value);
        Ok(())
    }

    fn operator(&mut self, op: &str, rest: &str) -> Outcome<ValueId> {
        let (head, tail) = rest.split_once(" : ").ok_or("expected `: type`")?;
        let (ty, name) = split_name(tail)?;
        let mut application = split_application(head)?;
        let op = Op::from_fields(op, &mut application.fields)?;
        application.fields.finish()?;
        self.checked_add(name, op, &application.operands, ty)
    }

    fn kernel(&mut self, rest: &str, op: fn(Arc<KernelSpec>) -> Op) -> Outcome<ValueId> {
        let head = rest.strip_suffix('{').ok_or("expected `{` at the end of the line")?;
        let operands = split_application(head)?.operands;
        let args = operands.iter().map(|o| self.value(o)).collect::<Outcome<Vec<_>>>()?;
        let types: Vec<TensorType> = args.iter().map(|&a| self.graph.ty(a).clone()).collect();
        let (spec, tail) = self.spec(types)?;
        let (ty, name) = split_name(tail)?;
        self.checked_add(name, op(Arc::new(spec)), &operands, ty)
    }

    /// A kernel's body over operands of the given types, and what stands behind its closing brace.
    fn spec(&mut self, mut types: Vec<TensorType>) -> Outcome<(KernelSpec, &'a str)> {
        let mut body = Vec::new();
        let mut declared = Vec::new();
        loop {
            let line = self.next_line().ok_or("the kernel is not closed")?;
            if let Some(tail) = line.strip_prefix("} : ") {
                return Ok((declared_spec(types, body, &declared)?, tail));
            }
            if let Some(first) = line.strip_prefix("second #") {
                let first =
                    first.parse().ok().filter(|&n| n <= types.len()).ok_or("`#n` is no operand of the kernel")?;
                let others = types.split_off(first);
                let spec = declared_spec(types, body, &declared)?;
                let (second, tail) = self.spec([spec.result().clone()].into_iter().chain(others).collect())?;
                return Ok((spec.with_second(Arc::new(second)).map_err(|e| e.to_string())?, tail));
            }
            let prefix = format!("${} = ", body.len());
            let (op, rest) = split_word(line.strip_prefix(&prefix).ok_or(format!("expected `{prefix}...` or `}}`"))?);
            let (head, ty) = rest.split_once(" : ").ok_or("expected `: type`")?;
            let mut application = split_application(head)?;
            let op = Op::from_fields(op, &mut application.fields)?;
            application.fields.finish()?;
            body.push((op, application.operands.iter().map(|o| parse_arg(o)).collect::<Outcome<_>>()?));
            declared.push(parse_type(ty.trim())?);
        }
    }

    fn checked_add(&mut self, name: String, op: Op, operands: &[&str], ty: &str) -> Outcome<ValueId> {
        let args = operands.iter().map(|o| self.value(o)).collect::<Outcome<Vec<_>>>()?;
        let value = self.graph.add(name, op, &args).map_err(|e| e.to_string())?;
        check_declared(self.graph.ty(value), &parse_type(ty)?)?;
        Ok(value)
    }

    fn value(&self, text: &str) -> Outcome<ValueId> {
        let index = text.strip_prefix('%').and_then(|n| n.parse::<usize>().ok());
        index
            .and_then(|i| self.values.get(i).copied())
            .ok_or_else(|| format!("`{text}` is not a value above this line"))
    }

    fn constant(&self, data: &str, ty: &TensorType) -> Outcome<Arc<Tensor>> {
        let count = checked_elements(&ty.shape).map_err(|e| e.to_string())?;
        let call = |name: &str| data.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
        if let Some(hash) = call("hash") {
            let key = u128::from_str_radix(hash, 16).map_err(|e| format!("`{hash}`: {e}"))?;
            let tensor = self.store.get(&ConstId(key)).ok_or(format!("constant {hash} is not in the store"))?;
            let stored = TensorType::new(tensor.elem(), tensor.shape());
            check_declared(&stored, &TensorType::new(ty.elem, ty.shape.clone()))?;
            return Ok(Arc::clone(tensor));
        }
        if count > MAX_TEXT_ELEMENTS {
            return Err(format!("a constant of {count} elements; at most {MAX_TEXT_ELEMENTS} can be written as text"));
        }
        if let Some(parameters) = call("seed") {
            let numbers: Vec<i64> = parameters.split(',').filter_map(|s| s.trim().parse().ok()).collect();
            let &[seed, lo, hi] = numbers.as_slice() else {
                return Err("expected `seed(n,lo,hi)`".into());
            };
            let range = (lo <= hi).then_some(Range { lo, hi }).ok_or("expected lo <= hi")?;
            return seeded(ty, seed as u64, range).map(Arc::new);
        }
        let items: Vec<&str> = match (call("splat"), data.strip_prefix('[').and_then(|d| d.strip_suffix(']'))) {
            (Some(item), _) => vec![item; count],
            (_, Some(items)) => items.split(',').map(str::trim).collect(),
            _ => return Err("expected `[..]`, `splat(v)`, `seed(n,lo,hi)` or `hash(h)`".into()),
        };
        let tensor = if ty.is_float() {
            let values = items.iter().map(|s| s.parse::<f32>().map_err(|e| format!("`{s}`: {e}")));
            Tensor::from_f32(ty.shape.clone(), values.collect::<Outcome<_>>()?)
        } else {
            let values = items.iter().map(|s| s.parse::<i64>().map_err(|e| format!("`{s}`: {e}")));
            Tensor::from_ints(ty.elem, ty.shape.clone(), values.collect::<Outcome<Vec<_>>>()?)
        };
        tensor.map(Arc::new).map_err(|e| e.to_string())
    }
}

/// A tensor of pseudo-random values in `range` (splitmix64), the same for the same seed everywhere.
/// Floats are the integers of the range divided by 256.
pub fn seeded(ty: &TensorType, seed: u64, range: Range) -> Outcome<Tensor> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let span = (range.hi as i128 - range.lo as i128 + 1) as u128;
        (range.lo as i128 + (u128::from(z ^ (z >> 31)) % span) as i128) as i64
    };
    let values = (0..ty.elements()).map(|_| next());
    let tensor = if ty.is_float() {
        Tensor::from_f32(ty.shape.clone(), values.map(|v| v as f32 / 256.0).collect())
    } else {
        Tensor::from_ints(ty.elem, ty.shape.clone(), values)
    };
    tensor.map_err(|e| e.to_string())
}

/// A kernel whose steps have the declared types.
fn declared_spec(operands: Vec<TensorType>, body: Vec<(Op, Vec<Arg>)>, declared: &[TensorType]) -> Outcome<KernelSpec> {
    let spec = KernelSpec::new(operands, body).map_err(|e| e.to_string())?;
    for (step, declared) in spec.steps().iter().zip(declared) {
        check_declared(&step.ty, declared)?;
    }
    Ok(spec)
}

fn check_declared(inferred: &TensorType, declared: &TensorType) -> Outcome<()> {
    if inferred == declared { Ok(()) } else { Err(format!("declared {declared}, inferred {inferred}")) }
}

fn split_word(text: &str) -> (&str, &str) {
    text.trim().split_once(' ').map_or((text.trim(), ""), |(word, rest)| (word, rest.trim()))
}

/// `: type @"name"` of an input.
fn split_type(text: &str) -> Outcome<(&str, String)> {
    split_name(text.trim().strip_prefix(": ").ok_or("expected `: type`")?)
}

/// `type @"name"`, the name being optional.
fn split_name(text: &str) -> Outcome<(&str, String)> {
    match text.split_once(" @") {
        None => Ok((text.trim(), String::new())),
        Some((ty, name)) => Ok((ty.trim(), unquote(name.trim())?)),
    }
}

/// Undoes Rust's `{:?}` of a string.
fn unquote(text: &str) -> Outcome<String> {
    let inner =
        text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).ok_or(format!("expected a string, found {text}"))?;
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next() {
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('0') => '\0',
            Some('u') => {
                let code: String = chars.by_ref().skip(1).take_while(|&c| c != '}').collect();
                u32::from_str_radix(&code, 16).ok().and_then(char::from_u32).ok_or("bad \\u escape")?
            }
            Some(other) => other,
            None => return Err("a string ends in a backslash".into()),
        });
    }
    Ok(out)
}

fn split_application(text: &str) -> Outcome<Application<'_>> {
    let mut application = Application { operands: Vec::new(), fields: Fields(BTreeMap::new()) };
    for word in text.split_whitespace() {
        match word.split_once('=') {
            Some((key, value)) => {
                if application.fields.0.insert(key.into(), value.into()).is_some() {
                    return Err(format!("attribute `{key}` is given twice"));
                }
            }
            None => application.operands.push(word.trim_end_matches(',')),
        }
    }
    Ok(application)
}

fn parse_arg(text: &str) -> Outcome<Arg> {
    let number = |prefix| text.strip_prefix(prefix).and_then(|n: &str| n.parse().ok());
    let arg = number('#').map(Arg::Operand).or_else(|| number('$').map(Arg::Step));
    arg.ok_or_else(|| format!("`{text}` is neither `#n` nor `$n`"))
}

fn parse_type(text: &str) -> Outcome<TensorType> {
    let bad = || format!("`{text}` is not a type `elem<lo,hi>[shape]`");
    let (head, shape) = text.strip_suffix(']').and_then(|t| t.split_once('[')).ok_or_else(bad)?;
    let (elem, range) = match head.split_once('<') {
        None => (head, None),
        Some((elem, range)) => (elem, Some(range.strip_suffix('>').and_then(|r| r.split_once(',')).ok_or_else(bad)?)),
    };
    let elem: Elem = elem.parse()?;
    let shape: Vec<usize> = match shape {
        "" => Vec::new(),
        dims => dims.split(',').map(|d| d.trim().parse().map_err(|_| bad())).collect::<Outcome<_>>()?,
    };
    checked_elements(&shape).map_err(|e| e.to_string())?;
    let Some((lo, hi)) = range else {
        return Ok(TensorType::new(elem, shape));
    };
    let (lo, hi): (i64, i64) = (lo.parse().map_err(|_| bad())?, hi.parse().map_err(|_| bad())?);
    let range = (lo <= hi).then_some(Range { lo, hi }).ok_or_else(bad)?;
    TensorType::with_range(elem, shape, range).map_err(|e| e.to_string())
}
