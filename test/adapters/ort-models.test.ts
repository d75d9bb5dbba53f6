/** @jest-environment ./test/support/native-arrays-environment.js */
import { testRoutes } from '../support/ort-routes.js';

// test/long has twenty times as many inputs.

testRoutes(5);
