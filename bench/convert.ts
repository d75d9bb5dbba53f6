/** Each conversion of dtypes on one thread beside a memcpy of as many bytes: `npm run bench -- convert [MiB]`. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

export function printConvert(args: readonly string[]): void {
  const build = join(__dirname, '..', '..', 'build', 'cmake');
  const built = spawnSync('cmake', ['--build', build, '--target', 'convert_bench'], { encoding: 'utf8' });
  if (built.status !== 0) throw new Error(`the benchmark cannot be built: ${built.stdout}${built.stderr}`);
  const { status, signal } = spawnSync(join(build, 'convert_bench'), args, { stdio: 'inherit' });
  if (status !== 0) throw new Error(`the benchmark ended with ${signal ?? status}`);
}
