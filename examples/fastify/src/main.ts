/** KeyGuard in Fastify: a hook in front of `/api`, and the routes by which devices enroll. */
import { fromUtf8 } from '@keyguard/core/bytes';
import { memoryDeviceRegistry, memoryReplayStore } from '@keyguard/core/memory';
import { webCryptoRandom } from '@keyguard/core/system';
import { createEnrollment, createVerifier, generateEnrollmentCode, hashEnrollmentCode, refusalOf, type IncomingRequest, type VerifiedRequest } from '@keyguard/server-verifier';
import { messageReceiver } from '@keyguard/server-verifier/node';
import { deviceRoutes } from '@keyguard/server-verifier/routes';
import Fastify, { type FastifyReply, type FastifyRequest } from 'fastify';

declare module 'fastify' {
  interface FastifyRequest {
    /** Set by the hook in front of `/api`. */
    verified: VerifiedRequest | null;
  }
}

const port = Number(process.env['PORT'] ?? 3000);
const registry = memoryDeviceRegistry(); // or your own DeviceRegistry
const options = { registry, replayStore: memoryReplayStore(), policy: { authorities: [`localhost:${port}`] } };
const verifier = createVerifier(options);
const receive = messageReceiver(verifier.policy);

const app = Fastify();
app.decorateRequest('verified', null);
// KeyGuard reads the bytes of every type itself, and Fastify none: its parsers would take them first, or refuse a type they do not know.
app.removeAllContentTypeParsers();
app.addContentTypeParser('*', (_request, _payload, done) => done(null));

type Clock = { nowMs(): number };

/** Runs a recipe on the bytes as they came; `null` when the refusal has been sent. */
async function run<T>(request: FastifyRequest, reply: FastifyReply, clock: Clock, recipe: (incoming: IncomingRequest) => Promise<T>): Promise<T | null> {
  try {
    return await receive(request.raw, { target: request.originalUrl, ip: request.ip }, recipe);
  } catch (error) {
    const refusal = refusalOf(error, clock, request.raw.complete);
    if (refusal === null) throw error;
    await reply.code(refusal.status).headers(refusal.headers).type('application/problem+json').send(JSON.stringify(refusal.problem));
    return null;
  }
}

for (const { method, path, clock, answer } of deviceRoutes({ verifier, enrollment: createEnrollment(options) })) {
  app.route({
    method,
    url: `/api/keyguard${path}`,
    async handler(request, reply) {
      const answered = await run(request, reply, clock, answer);
      return answered === null ? reply : reply.code(answered.status).headers(answered.headers).send(answered.body);
    },
  });
}

app.register(async (api) => {
  // The first hook there is: nothing has touched the body, and handlers never see what did not verify.
  api.addHook('onRequest', async (request, reply) => {
    request.verified = await run(request, reply, verifier, (incoming) => verifier.verify(incoming));
    return request.verified === null ? reply : undefined;
  });
  api.get('/api/hello', async ({ verified }) => ({ hello: verified!.device.label }));
  api.post('/api/orders', async ({ verified }, reply) => {
    const { device, body } = verified!;
    return reply.code(201).send({ by: device.label, bytes: body.length, order: JSON.parse(fromUtf8(body)) as unknown });
  });
});

await app.listen({ port, host: 'localhost' });
const code = generateEnrollmentCode(webCryptoRandom());
registry.addCode({ codeHash: hashEnrollmentCode(code)!, ownerId: 'you', expiresAtMs: Date.now() + 900_000 });
console.log(`http://localhost:${port}, enrollment code: ${code}`);
