import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';

const NATIVE = join(__dirname, '../../src/native');

export interface DeclaredFunction {
  readonly name: string;
  readonly parameters: readonly { readonly name: string; readonly type: string }[];
}

/** What src/native/ declares of the addon: the functions of the interfaces that addon.ts says it consists of. */
export function declaredFunctions(): DeclaredFunction[] {
  const interfaces = new Map<string, ts.InterfaceDeclaration>();
  for (const file of readdirSync(NATIVE)) {
    const text = readFileSync(join(NATIVE, file), 'utf8');
    for (const node of ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true).statements) {
      if (ts.isInterfaceDeclaration(node)) interfaces.set(node.name.text, node);
    }
  }
  const parts = interfaces.get('Addon')!.heritageClauses!.flatMap(({ types }) => types.map((type) => type.getText()));
  return parts.flatMap((part) => interfaces.get(part)!.members.map(functionOf));
}

function functionOf(member: ts.TypeElement): DeclaredFunction {
  if (!ts.isMethodSignature(member)) throw new Error(`${member.getText()} is no method`);
  return {
    name: member.name.getText(),
    parameters: member.parameters.map(({ name, type }) => ({ name: name.getText(), type: type!.getText() })),
  };
}
