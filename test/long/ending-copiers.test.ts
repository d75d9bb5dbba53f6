import { SLOW, testCopierEndings } from '../support/copier-endings.js';

// What test/ending-copiers.test.ts shows of loads onto an emulated GPU, into host memory.

testCopierEndings(SLOW.filter(([, device]) => device === 'cpu'));
