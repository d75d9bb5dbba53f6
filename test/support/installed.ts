import { cpSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const TOP = join(__dirname, '..', '..');

/**
 * A project in `folder` with this package as its users have it, but without any binary; returns where the package
 * lies: in `modules` of the project.
 */
export function installWithoutBinary(folder: string, modules = 'node_modules'): string {
  const { dependencies } = require('../../package.json') as { dependencies: Record<string, string> };
  const target = join(folder, modules, 'fastsafetensors-node');
  mkdirSync(target, { recursive: true });
  writeFileSync(join(folder, 'package.json'), '{"private":true}');
  for (const part of ['package.json', 'dist/src', 'dist/adapters'])
    cpSync(join(TOP, part), join(target, part), { recursive: true });
  for (const name of Object.keys(dependencies)) symlinkSync(join(TOP, 'node_modules', name), join(target, '..', name));
  return target;
}
