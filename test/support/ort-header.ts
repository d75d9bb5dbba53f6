import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';

// onnxruntime-node brings no C headers. This package on npm has them, among 150 MB of libraries: too much for every
// clone's dependencies, so the headers alone are kept, in build/.
const PACKAGE = 'com.github.asus4.onnxruntime@0.4.9';
const INTEGRITY = 'sha512-BkzxduSZ9IkeDP6Q8lz2TFU2ie7hSSvS7ZIfzMooExoq0CNzJnuuGaUJ7IsojBgqO4ouD1jXah8OYyJbCN29Fg==';
const HEADERS = 'package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers';

/** The folder of onnxruntime_c_api.h, of version 29 of the API; fetched from npm once a clone. */
export function ortHeaders(): string {
  const build = join(__dirname, '..', '..', 'build');
  const folder = join(build, 'ort-headers');
  if (existsSync(folder)) return folder;
  mkdirSync(build, { recursive: true });
  const temporary = mkdtempSync(join(build, 'ort-headers-'));
  try {
    const run = (command: string, args: string[]): string => {
      const { status, stdout, stderr, error } = spawnSync(command, args, { cwd: temporary, encoding: 'utf8' });
      if (status !== 0) throw new Error(`cannot get the headers of ONNX Runtime: ${command}: ${error ?? stderr}`);
      return stdout;
    };
    const [packed] = JSON.parse(run('npm', ['pack', '--json', PACKAGE]));
    expect(packed.integrity).toBe(INTEGRITY);
    run('tar', ['-xzf', packed.filename, `--strip-components=${HEADERS.split('/').length}`, HEADERS]);
    rmSync(join(temporary, packed.filename));
    renameSync(temporary, folder);
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
  return folder;
}
