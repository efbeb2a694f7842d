/** KeyGuard in Hono: a door in front of `/api`, and the routes by which devices enroll. */
import { serve } from '@hono/node-server';
import { getConnInfo } from '@hono/node-server/conninfo';
import { fromUtf8 } from '@keyguard/core/bytes';
import { memoryDeviceRegistry, memoryReplayStore } from '@keyguard/core/memory';
import { webCryptoRandom } from '@keyguard/core/system';
import { createEnrollment, createVerifier, generateEnrollmentCode, hashEnrollmentCode, type VerifiedRequest } from '@keyguard/server-verifier';
import { fetchDevices, fetchDoor } from '@keyguard/server-verifier/fetch';
import { Hono, type Context } from 'hono';

const port = Number(process.env['PORT'] ?? 3000);
const registry = memoryDeviceRegistry(); // or your own DeviceRegistry
const options = { registry, replayStore: memoryReplayStore(), policy: { authorities: [`localhost:${port}`] } };
const verifier = createVerifier(options);

// The address of the connection, and nothing that a header says.
const ip = (_request: Request, context: Context): string | null => getConnInfo(context).remote.address ?? null;
const door = fetchDoor(verifier, { ip });
const devices = fetchDevices({ verifier, enrollment: createEnrollment(options), ip });

const app = new Hono<{ Variables: { verified: VerifiedRequest } }>();
app.all('/api/keyguard/*', (context) => devices(context.req.raw, context));

app.use('/api/*', async (context, next) => {
  const { verified, refusal } = await door.verify(context.req.raw, context);
  if (refusal !== null) return refusal;
  context.set('verified', verified);
  return next();
});
app.get('/api/hello', (context) => context.json({ hello: context.get('verified').device.label }));
app.post('/api/orders', (context) => {
  // Not context.req.json(): the signed bytes are here, and the request has none left.
  const { device, body } = context.get('verified');
  return context.json({ by: device.label, bytes: body.length, order: JSON.parse(fromUtf8(body)) as unknown }, 201);
});

serve({ fetch: app.fetch, port, hostname: 'localhost' }, () => {
  const code = generateEnrollmentCode(webCryptoRandom());
  registry.addCode({ codeHash: hashEnrollmentCode(code)!, ownerId: 'you', expiresAtMs: Date.now() + 900_000 });
  console.log(`http://localhost:${port}, enrollment code: ${code}`);
});
