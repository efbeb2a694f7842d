/** What scanners, floods and noise are refused costs the log a few entries a minute, and none of it is left out of the count. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { raw } from '../http/raw.ts';
import { backends, startService, type Backend } from '../stage.ts';

describe.each(backends())('on %s', (_title, open) => {
  let backend: Backend;
  beforeAll(async () => {
    backend = await open();
  }, 60_000);
  afterAll(() => backend?.stop(), 60_000);

  it('a path of nothing, a text that is no HTTP and a limit are counted by address, and told in a few entries', async () => {
    const deployment = await backend.deploy();
    const service = await startService(deployment.folder, { ...deployment.environment, TRUST_PROXY: '1' });
    const host = `host: ${new URL(service.origin).host}`;
    const ask = (line: string, from: string, body = ''): Promise<unknown> =>
      raw(service.origin, [line, host, 'connection: close', `x-forwarded-for: ${from}`, 'content-type: application/json', `content-length: ${Buffer.byteLength(body)}`], body);
    for (let n = 0; n < 5; n += 1) await ask(`GET /wp-login-${n}.php HTTP/1.1`, '198.51.100.7');
    for (let n = 0; n < 3; n += 1) await raw(service.origin, [`no HTTP ${n}`]);
    await ask('GET http://elsewhere/ HTTP/1.1', '198.51.100.7');
    const setUp = JSON.stringify({ code: 'x', email: 'a@example.com', password: 'a long and quiet password' });
    for (let n = 0; n < 14; n += 1) await ask('POST /api/setup HTTP/1.1', '198.51.100.8', setUp);
    await service.stop();
    const entries = await deployment.withDatabase(async (sql) => {
      const { rows } = await sql.transaction(async (tx) => {
        await tx.query('SET LOCAL ROLE kg_jobs');
        return tx.query<{ entry: Uint8Array }>(`SELECT entry FROM keyguard.secret_audit_logs WHERE action IN ('request.refused', 'request.refused_more', 'setup.administrator_created') ORDER BY seq`);
      });
      return rows.map(({ entry }) => JSON.parse(Buffer.from(entry).toString('utf8')) as Record<string, unknown>);
    });
    const written = entries.filter(({ action }) => action === 'setup.administrator_created');
    const counted = entries.filter(({ action }) => action === 'request.refused_more');
    expect(entries.length).toBe(written.length + counted.length);
    // A minute may have ended in between.
    const sum = (code: string, ip: string): number => counted.reduce((all, one) => (one['code'] === code && one['ip'] === ip ? all + Number(one['stands_for']) : all), 0);
    expect(sum('not_found', '198.51.100.7')).toBe(5);
    // What cannot be read says nothing of proxies: it counts to the address at the other end of the socket.
    expect(sum('malformed_request', '127.0.0.1')).toBe(4);
    expect(sum('rate_limited', '198.51.100.8') + written.length).toBe(14);
    expect(sum('rate_limited', '198.51.100.8')).toBeGreaterThan(0);
  }, 60_000);
});
