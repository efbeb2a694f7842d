import express from 'express';
import { enrollmentRouter, keyguard } from '@keyguard/adapters-express';
import { memoryDeviceRegistry, memoryReplayStore } from '@keyguard/core/memory';
import { createEnrollment, createVerifier } from '@keyguard/server-verifier';

export const registry = memoryDeviceRegistry(); // or your own DeviceRegistry
const options = { registry, replayStore: memoryReplayStore(), policy: { authorities: ['localhost:4000'] } };
const verifier = createVerifier(options);

export const app = express();
app.use('/api/keyguard', enrollmentRouter({ verifier, enrollment: createEnrollment(options) }));
app.use('/api', keyguard(verifier));
app.get('/api/hello', (request, response) => void response.json({ hello: request.keyguard?.device.label }));
