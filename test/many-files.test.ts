import { expectClean } from './support/child.js';

test('3000 files load under a limit of 64 open files', async () => {
  await expectClean('many-files.child.cjs', ['load', '', '3000'], { shell: 'ulimit -n 64' });
});

test('the table of descriptors has room for all files of a load before they are open', async () => {
  await expectClean('many-files.child.cjs', ['table', '', '600']); // of which half are open at a time
});
