/** @jest-environment ./test/support/native-arrays-environment.js */
import { testRoutes } from '../support/ort-routes.js';

// test/long has five times as many inputs.

testRoutes(20);
