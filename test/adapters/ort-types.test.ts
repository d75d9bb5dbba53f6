import { join } from 'node:path';
import ts from 'typescript';

const top = join(__dirname, '..', '..');

/** What tsc says of the file as a user's own, against the built declarations. */
function diagnose(file: string, options: ts.CompilerOptions): string[] {
  const program = ts.createProgram([file], {
    target: ts.ScriptTarget.ES2022,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts', 'lib.dom.d.ts'], // onnxruntime-common needs the DOM's
    strict: true,
    noUncheckedIndexedAccess: true,
    noEmit: true,
    types: ['node'],
    typeRoots: [join(top, 'node_modules', '@types')],
    ...options,
  });
  return ts.getPreEmitDiagnostics(program).map(({ messageText, file: at, start }) => {
    const line = at && start !== undefined ? at.getLineAndCharacterOfPosition(start).line + 1 : 0;
    return `${line > 0 ? `${at!.fileName}:${line}: ` : ''}${ts.flattenDiagnosticMessageText(messageText, '\n')}`;
  });
}

test.each([
  ['node20', { module: ts.ModuleKind.Node20, moduleResolution: ts.ModuleResolutionKind.Node16 }],
  ['bundlers', { module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler }],
])('code for ort.InferenceSession compiles unchanged, and mistakes do not (%s)', (_, options) => {
  expect(diagnose(join(top, 'test', 'types', 'ort.ts'), options)).toEqual([]);
});
