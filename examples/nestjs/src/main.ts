/** KeyGuard in NestJS on its Express platform: the Express middleware in front of all controllers. */
import 'reflect-metadata';
import { enrollmentRouter, keyguard, verifiedRequest } from '@keyguard/adapters-express';
import { fromUtf8 } from '@keyguard/core/bytes';
import { memoryDeviceRegistry, memoryReplayStore } from '@keyguard/core/memory';
import { webCryptoRandom } from '@keyguard/core/system';
import { createEnrollment, createVerifier, generateEnrollmentCode, hashEnrollmentCode, type VerifiedRequest } from '@keyguard/server-verifier';
import { Controller, createParamDecorator, Get, Module, Post, type ExecutionContext } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import type { NestExpressApplication } from '@nestjs/platform-express';

const port = Number(process.env['PORT'] ?? 3000);
const registry = memoryDeviceRegistry(); // or your own DeviceRegistry
const options = { registry, replayStore: memoryReplayStore(), policy: { authorities: [`localhost:${port}`] } };
const verifier = createVerifier(options);

/** The verified request, as a parameter of a handler. Where the door was not mounted it is an error, and not an empty value. */
const Verified = createParamDecorator((_: unknown, context: ExecutionContext) => verifiedRequest(context.switchToHttp().getRequest()));

@Controller('api')
class ApiController {
  @Get('hello')
  hello(@Verified() { device }: VerifiedRequest) {
    return { hello: device.label };
  }

  // Not @Body(): the signed bytes are here.
  @Post('orders')
  order(@Verified() { device, body }: VerifiedRequest) {
    return { by: device.label, bytes: body.length, order: JSON.parse(fromUtf8(body)) as unknown };
  }
}

@Module({ controllers: [ApiController] })
class AppModule {}

// Nest's parsers would read the bytes first, or again.
const app = await NestFactory.create<NestExpressApplication>(AppModule, { bodyParser: false, logger: ['error', 'warn'] });
// Before anything is mounted: a door at /api must not let /API pass by.
app.set('case sensitive routing', true);
app.use('/api/keyguard', enrollmentRouter({ verifier, enrollment: createEnrollment(options) }));
app.use('/api', keyguard(verifier));
await app.listen(port, 'localhost');

const code = generateEnrollmentCode(webCryptoRandom());
registry.addCode({ codeHash: hashEnrollmentCode(code)!, ownerId: 'you', expiresAtMs: Date.now() + 900_000 });
console.log(`http://localhost:${port}, enrollment code: ${code}`);
