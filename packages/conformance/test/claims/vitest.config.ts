/** For `table.test.ts`, which runs it in a process of its own with a document that says so or otherwise. */
import { defineConfig } from 'vitest/config';

export default defineConfig({
  root: import.meta.dirname,
  test: { include: ['*.evidence.ts'], reporters: [['../../src/reporter.ts', { claims: process.env['CLAIMS'] }]] },
});
