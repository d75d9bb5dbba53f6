import { SLOW, testCopierEndings } from './support/copier-endings.js';

// Loads onto an emulated GPU; test/long has those into host memory.

testCopierEndings(SLOW.filter(([, device]) => device !== 'cpu'));
