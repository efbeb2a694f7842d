import { defineConfig } from 'tsup';

export default defineConfig({
  // The suites of seams. Those of doors and frameworks are for this workspace, and run from the source.
  entry: ['src/index.ts', 'src/reporter.ts'],
  format: ['esm'],
  dts: true,
  sourcemap: true,
  clean: true,
  treeshake: true,
  target: 'es2022',
});
