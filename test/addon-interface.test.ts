import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '../src/native/addon.js';
import { declaredFunctions } from './support/addon-interface.js';

// src/native declares what csrc/napi exports: the same functions, with the same parameters.

const declared = declaredFunctions();

test('every function that the addon exports is declared, and every declared one is exported', () => {
  const names = declared.map(({ name }) => name);
  expect(names.length).toBeGreaterThan(40);
  expect(Object.keys(native()).sort()).toEqual([...names].sort());
  expect(Object.values(native()).every((value) => typeof value === 'function')).toBe(true);
});

const NAPI = join(__dirname, '../csrc/napi');
const source = readdirSync(NAPI)
  .filter((file) => file.endsWith('.cc'))
  .map((file) => readFileSync(join(NAPI, file), 'utf8'))
  .join('\n');

/** The text of a C++ function or struct at namespace scope, with the comment above it. */
function definitionOf(name: string): { comment: string; body: string } {
  const head = `(?<comment>(?:^//.*\\n)*)^(?:struct ${name}\\b|[\\w:&*<> ]+ ${name}\\(.*\\) )`;
  const found = source.match(new RegExp(`${head}(?<body>\\{.*\\}$|.*\\{\\n(?:.*\\n)*?\\};?$)`, 'm'));
  if (!found) throw new Error(`csrc/napi defines no ${name}`);
  return { comment: found.groups!.comment!.replace(/^\/\/ ?/gm, ' '), body: found.groups!.body! };
}

/** Which arguments a function reads, itself or in what it hands `info` to. */
function argumentsRead(body: string): Set<number> {
  const read = new Set([...body.matchAll(/\binfo\[(\d+)\]/g)].map(([, index]) => Number(index)));
  for (const [, callee] of body.matchAll(/\b(\w+)(?:>| \w+)?\(info\b(?!\[|\.)/g)) {
    for (const index of argumentsRead(definitionOf(callee!).body)) read.add(index);
  }
  return read;
}

/** `name(a, b: {c, d}): …` in a comment: its parameters. */
function parametersSaid(comment: string, name: string): string[] {
  const start = comment.indexOf(`${name}(`);
  if (start < 0) return [`(the comment does not begin with ${name}(…))`];
  const parameters = [''];
  let depth = 0;
  for (const char of comment.slice(start + name.length + 1)) {
    if (char === ')' && depth === 0) break;
    if ('([{'.includes(char)) ++depth;
    if (')]}'.includes(char)) --depth;
    if (char === ',' && depth === 0) parameters.push('');
    else parameters[parameters.length - 1] += char;
  }
  return parameters.map((parameter) => parameter.split(':')[0]!.trim()).filter((parameter) => parameter !== '');
}

const functions = new Map(
  [...source.matchAll(/^ {2}Export<(\w+)>\(env, exports, "(\w+)"/gm)].map(([, cpp, name]) => [name!, cpp!]),
);

test.each(declared)('$name reads the parameters that are declared, and its comment names them', (declaration) => {
  const { name, parameters } = declaration;
  const { comment, body } = definitionOf(functions.get(name)!);
  expect([...argumentsRead(body)].sort()).toEqual(parameters.map((_, index) => index));
  expect(parametersSaid(comment, name)).toEqual(parameters.map((parameter) => parameter.name));
});
