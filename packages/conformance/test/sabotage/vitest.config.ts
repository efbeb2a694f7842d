/** For `sabotage.slow.test.ts`, which runs these suites in a process of their own and expects them to fail. */
import { defineConfig } from 'vitest/config';

const conditions = ['@keyguard/source'];

export default defineConfig({
  root: import.meta.dirname,
  resolve: { conditions },
  ssr: { resolve: { conditions } },
  test: { include: ['*.sabotaged.ts'], reporters: ['../../src/reporter.ts'] },
});
