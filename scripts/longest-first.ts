/**
 * The order in which test files start: those that take longest go first, or the last worker would be alone with one of them at the
 * end. A fresh clone has no times of an earlier run, so the longest are named here; a file that is named nowhere only starts later.
 */
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** From the longest on, each of some ten seconds or more. */
export const LONGEST: readonly string[] = [
  // Of those that only CI runs.
  'examples/service/test/http/fuzz.slow.test.ts',
  'examples/service/test/budgets/replicas.slow.test.ts',
  'examples/service/test/start.slow.test.ts',
  'packages/adapters-express/test/rotation-client.slow.test.ts',
  'packages/storage-node/test/postgres-appends.slow.test.ts',
  'examples/service/test/operations/backup.slow.test.ts',
  'examples/service/test/cli-administration.slow.test.ts',
  'scripts/bench.slow.test.ts',
  'examples/service/test/keys/kek-rotation-large.slow.test.ts',
  'examples/service/test/matrix.slow.test.ts',
  'examples/service/test/cli.slow.test.ts',
  // Of the test command.
  'packages/storage-node/test/postgres.test.ts',
  'examples/quickstart/test/readme.test.ts',
  'packages/storage-node/test/postgres-conformance.test.ts',
  'examples/service/test/service.test.ts',
  'packages/storage-node/test/postgres-cached-devices.test.ts',
  'packages/storage-node/test/file-conformance.test.ts',
  'examples/service/test/matrix.test.ts',
  'examples/service/test/audit/refusals.test.ts',
  'examples/service/test/secrets/store.test.ts',
  'examples/service/test/api-keys/store.test.ts',
  'examples/service/test/secrets/shares.test.ts',
  'examples/service/test/http/idempotency.test.ts',
  'examples/service/test/budgets/budgets.test.ts',
  'examples/service/test/roles/projects.test.ts',
  'examples/service/test/people/oidc.test.ts',
  'packages/core/test/runner.test.ts',
  'examples/service/test/usage/usage.test.ts',
  'packages/storage-node/test/postgres-rotation.test.ts',
  'packages/storage-node/test/postgres-device-changes.test.ts',
  'examples/audit-verifier/test/attacks.test.ts',
  'scripts/docstrings.test.ts',
  'packages/storage-node/test/redis.test.ts',
  'packages/conformance/test/fetch-door.test.ts',
  'fuzz/test/fuzz.test.ts',
];

function rankOf({ moduleId }: TestSpecification): number {
  const rank = LONGEST.findIndex((name) => moduleId.endsWith(`/${name}`));
  return rank < 0 ? LONGEST.length : rank;
}

export class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    return (await super.sort(files)).toSorted((a, b) => rankOf(a) - rankOf(b));
  }
}
