/** A database that goes wrong beneath the stores: connections that break before or after a statement or a COMMIT, and a full disk. */
import { injectFaults, type InjectedFaults } from '@keyguard/conformance';
import type { SqlClient, SqlTransaction } from '../src/postgres.ts';

/** As `pg` throws them. */
export function databaseFaults(): InjectedFaults {
  return injectFaults({
    failure: () => Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET', errno: -104, syscall: 'read' }),
    full: () => Object.assign(new Error('could not extend file "base/16384/16402": No space left on device'), { code: '53100', severity: 'ERROR' }),
  });
}

const WRITES = /^\s*(?:INSERT|UPDATE|DELETE)\b|\bkeyguard\.(?:claim_nonces|purge_nonces|add_audit_records|add_audit_records_after)\(/i;

/** `inner`, reached over whatever `faults` does to a connection. */
export function faultyClient(inner: SqlClient, faults: InjectedFaults): SqlClient {
  const over = (tx: SqlTransaction): SqlTransaction => ({
    query: (text, params) => faults.through(() => tx.query(text, params), WRITES.test(text)),
  });
  return {
    ...over(inner),
    // BEGIN may fail before anything has happened, and the answer to COMMIT be lost after everything has.
    transaction: (fn) => faults.through(() => inner.transaction((tx) => fn(over(tx))), false),
  };
}
